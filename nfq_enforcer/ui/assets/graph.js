// Graph: the drawing of the map on a canvas, by Cytoscape.js. It draws what it is given and reports what is chosen.

import cytoscape from "/assets/vendor/cytoscape-3.35.0/cytoscape.esm.min.mjs";
import { boxOf, place } from "/assets/layout.js";
import { ports, rate } from "/assets/text.js";

const LABELLED = 16;  // edges; with more of them, only those under the pointer and the chosen one have their label
const PLAIN = 400;  // edges; with more of them, edges are straight lines, and moving shows a picture of the map
const RESTYLED = 400;  // edges of a large map that get another look at one update; the others follow at the next ones
const STILL = 250;  // ms after which a large map that was moved stands still
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export const edgeId = (edge) => JSON.stringify([edge.source, edge.destination, edge.verdict]);

const labelOf = (edge) => `${ports(edge, 2)} ${rate(edge.rate)}`.trim();

export class Graph {
  constructor(container, { onEdge, onNode, onNothing }) {
    this.container = container;
    this.touched = false;  // the user has chosen what is in view
    this.moved = new Map();  // places that the user chose, by key
    this.large = false;
    this.movedAt = -Infinity;
    this.latest = { nodes: [], edges: [], now: 0 };
    this.on = { onEdge, onNode, onNothing };
    this.start({});
  }

  start(viewport) {
    this.keys = "";
    this.drawn = new Map();  // edges by id: {element, label, width, idle}
    this.cy = cytoscape({
      container: this.container, style: this.style(), layout: { name: "preset" },
      minZoom: 0.05, maxZoom: 3, boxSelectionEnabled: false, autounselectify: true,
      textureOnViewport: this.large, pixelRatio: this.large ? 1 : "auto", ...viewport,
    });
    this.cy.on("tap", "edge", (event) => this.on.onEdge(event.target.id()));
    this.cy.on("tap", "node.workload", (event) => this.on.onNode(event.target.id()));
    this.cy.on("tap", (event) => { if (event.target === this.cy) this.on.onNothing(); });
    this.cy.on("mouseover", "edge", (event) => { this.label(event.target); event.target.addClass("hovered"); });
    this.cy.on("mouseout", "edge", (event) => event.target.removeClass("hovered"));
    this.cy.on("dragpan scrollzoom pinchzoom", () => { this.touched = true; });
    this.cy.on("viewport drag", () => { this.movedAt = performance.now(); });
    this.cy.on("dragfree", "node", (event) => this.keep(event.target));
  }

  keep(node) {
    const workloads = node.isParent() ? node.descendants().filter(".workload") : node;
    workloads.forEach((workload) => this.moved.set(workload.id(), { ...workload.position() }));
  }

  // nodes and edges are those to be drawn, all of them; now in seconds since the epoch.
  update(nodes, edges, now) {
    this.latest = { nodes, edges, now };
    if (this.large && this.isMoving()) return;  // a large map is drawn anew once it stands still
    this.restartIfSizeChanged(edges.length);
    let added = false;
    this.cy.batch(() => {
      added = this.updateNodes(nodes);
      this.updateEdges(edges, now);
    });
    if (added && !this.touched) this.fit();
  }

  isMoving() {
    const wait = this.movedAt + STILL - performance.now();
    if (wait <= 0) return false;
    clearTimeout(this.later);
    this.later = setTimeout(() => this.update(this.latest.nodes, this.latest.edges, this.latest.now), wait);
    return true;
  }

  // Cytoscape takes the options of a large map at its start only.
  restartIfSizeChanged(edges) {
    const large = this.large ? edges > PLAIN / 2 : edges > PLAIN;
    if (large === this.large) return;
    this.large = large;
    const viewport = { zoom: this.cy.zoom(), pan: { ...this.cy.pan() } };
    this.cy.destroy();
    this.start(viewport);
  }

  // Return whether the workloads, or their groups, are others than before.
  updateNodes(nodes) {
    const keys = nodes.map((node) => `${node.key} ${node.group}`).sort().join("\n");
    if (keys === this.keys) return false;
    this.keys = keys;
    const present = new Set(nodes.map((node) => node.key));
    this.cy.nodes(".workload").filter((node) => !present.has(node.id())).remove();
    for (const [id, { element }] of this.drawn) if (element.removed()) this.drawn.delete(id);  // they go with their ends
    const places = place(nodes), added = new Map();
    for (const node of nodes) this.putNode(node, this.moved.get(node.key) ?? places.get(node.key), added);
    this.cy.add([...added.values()]);
    this.cy.nodes(".group").filter((box) => box.isChildless()).remove();
    this.cy.nodes(".box").filter((box) => box.isChildless()).remove();
    return true;
  }

  // Move a node that is drawn already, or add it, and the boxes around it, to the elements that are new.
  putNode(node, position, added) {
    const box = `box:${boxOf(node)}`, group = `group:${boxOf(node)}:${node.group}`;
    this.putBox(added, { id: box, label: boxOf(node) }, "box");
    this.putBox(added, { id: group, label: node.group, parent: box }, "box group");
    const there = this.cy.getElementById(node.key);
    if (there.nonempty() && there.data("parent") === group) {
      const { x, y } = there.position();
      if (x !== position.x || y !== position.y) there.position(position);
      return;
    }
    if (there.nonempty()) {  // its labels are others: with its edges, it is drawn anew
      there.connectedEdges().forEach((edge) => { this.drawn.delete(edge.id()); });
      there.remove();
    }
    const data = { id: node.key, parent: group, label: node.name };
    added.set(node.key, { group: "nodes", data, position: { ...position }, classes: `workload ${node.kind}` });
  }

  putBox(added, data, classes) {
    if (!added.has(data.id) && this.cy.getElementById(data.id).empty()) added.set(data.id, { group: "nodes", data, classes });
  }

  updateEdges(edges, now) {
    let restyled = 0;
    const present = new Set(), added = [], labelled = edges.length <= LABELLED;
    for (const edge of edges) {
      const id = edgeId(edge), there = this.drawn.get(id);
      const label = this.large ? "" : labelOf(edge);
      const width = Math.min(6, Math.round(2 + 2 * Math.log2(1 + edge.rate * 4)) / 2 + 0.5);
      const idle = now - edge.last > 60;
      present.add(id);
      if (!there) {
        const classes = [edge.verdict, idle && "idle", labelled && "labelled", this.large && "plain"].filter(Boolean).join(" ");
        added.push({ group: "edges", data: { id, source: edge.source, target: edge.destination, label, width }, classes });
        this.drawn.set(id, { element: null, label, width, idle });
        continue;
      }
      if (there.label === label && there.width === width && there.idle === idle) continue;
      if (this.large && ++restyled > RESTYLED) continue;
      if (there.label !== label || there.width !== width) there.element.data({ label, width });
      if (there.idle !== idle) there.element.toggleClass("idle", idle);
      Object.assign(there, { label, width, idle });
    }
    for (const [id, { element }] of this.drawn) {
      if (present.has(id)) continue;
      element.remove();
      this.drawn.delete(id);
    }
    if (added.length) this.cy.add(added).forEach((element) => { this.drawn.get(element.id()).element = element; });
    if (labelled !== this.labelled) this.cy.edges().toggleClass("labelled", labelled);
    this.labelled = labelled;
  }

  // The label of an edge under the pointer, or of one that is chosen, in a map so large that edges have none.
  label(element) {
    const edge = this.large && this.latest.edges.find((one) => edgeId(one) === element.id());
    if (edge) element.data("label", labelOf(edge));
  }

  choose(id) {
    this.chosen = id;
    this.cy.elements(".chosen, .touching").removeClass("chosen touching");
    if (id === null) return;
    const found = this.cy.getElementById(id);
    if (found.empty()) return;
    found.addClass("chosen");
    if (found.isEdge()) this.label(found);
    else found.connectedEdges().slice(0, LABELLED).forEach((edge) => { this.label(edge); edge.addClass("touching"); });
    if (!this.touched) return;  // everything is in view
    const { x1, y1, x2, y2 } = this.cy.extent(), at = found.boundingBox();
    if (at.x1 < x1 || at.x2 > x2 || at.y1 < y1 || at.y2 > y2) this.show(found);
  }

  show(elements) {
    if (calm.matches || this.large) this.cy.center(elements);
    else this.cy.animate({ center: { eles: elements } }, { duration: 250 });
  }

  showAll() {
    this.touched = false;
    this.fit();
  }

  fit() {
    this.cy.fit(undefined, 40);
    if (this.cy.zoom() > 1.3) this.cy.zoom({ level: 1.3, renderedPosition: { x: this.container.clientWidth / 2, y: this.container.clientHeight / 2 } });
  }

  arrange() {
    this.moved.clear();
    this.keys = "";
  }

  zoom(factor) {
    this.touched = true;
    const centre = { x: this.container.clientWidth / 2, y: this.container.clientHeight / 2 };
    this.cy.zoom({ level: this.cy.zoom() * factor, renderedPosition: centre });
  }

  pan(x, y) {
    this.touched = true;
    this.cy.panBy({ x, y });
  }

  resize() {
    this.cy.resize();
    if (!this.touched) this.fit();
  }

  recolour() {
    this.cy.style().fromJson(this.style()).update();
  }

  style() {
    const css = getComputedStyle(document.documentElement), colour = (name) => css.getPropertyValue(`--${name}`).trim();
    const of = (verdict, dashes) => ({
      selector: `edge.${verdict}`,
      style: { "line-color": colour(verdict.toLowerCase()), "target-arrow-color": colour(verdict.toLowerCase()), color: colour(verdict.toLowerCase()), "line-style": dashes },
    });
    return [
      { selector: "node", style: { "font-family": "system-ui, DejaVu Sans, sans-serif", "font-size": 13, color: colour("text"), "min-zoomed-font-size": 6 } },
      { selector: "node.box", style: {
        shape: "round-rectangle", "background-color": colour("box"), "border-width": 1, "border-color": colour("line"), label: "data(label)",
        "text-valign": "top", "text-halign": "center", "text-margin-y": -4, color: colour("faint"), "font-weight": 600, padding: 26, events: "yes" } },
      { selector: "node.group", style: { "background-color": colour("group"), "font-weight": "normal", "font-size": 12, padding: 16, "border-width": 0, "text-wrap": "ellipsis", "text-max-width": 220 } },
      { selector: "node.workload", style: {
        shape: "round-rectangle", width: 112, height: 34, "background-color": colour("node"), "border-width": 1.5, "border-color": colour("node-line"),
        label: "data(label)", "text-valign": "center", "text-halign": "center", "text-wrap": "ellipsis", "text-max-width": 102 } },
      { selector: "node.reserved, node.cidr, node.identity", style: { shape: "cut-rectangle" } },
      { selector: "node.chosen", style: { "border-color": colour("accent"), "border-width": 4 } },
      { selector: "edge", style: {
        "curve-style": "bezier", "control-point-step-size": 34, width: "data(width)", "target-arrow-shape": "triangle", "arrow-scale": 1,
        "font-size": 12, "font-family": "system-ui, DejaVu Sans, sans-serif", "text-rotation": "autorotate", "min-zoomed-font-size": 6,
        "text-background-color": colour("ground"), "text-background-opacity": 0.85, "text-background-padding": 2, opacity: 0.9 } },
      { selector: "edge.plain", style: { "curve-style": "straight", "arrow-scale": 0.8 } },
      of("FORWARDED", "solid"), of("REDIRECTED", "solid"), of("AUDIT", "dotted"), of("DROPPED", "dashed"), of("ERROR", "dashed"),
      { selector: "edge.idle", style: { opacity: 0.4 } },
      { selector: "edge.labelled, edge.hovered, edge.chosen, edge.touching", style: { label: "data(label)" } },
      { selector: "edge.touching", style: { opacity: 1 } },
      { selector: "edge.hovered, edge.chosen", style: { opacity: 1, "z-index": 9, "underlay-color": colour("accent"), "underlay-opacity": 0.25, "underlay-padding": 5 } },
    ];
  }
}
