// Graph: the drawing of the map on a canvas, by Cytoscape.js. It draws what it is given and reports what is chosen.

import cytoscape from "/assets/vendor/cytoscape-3.35.0/cytoscape.esm.min.mjs";
import { boxOf, place } from "/assets/layout.js";
import { ports, rate } from "/assets/text.js";

const LABELLED = 16;  // edges; with more of them, only those under the pointer and the chosen one have their label
const PLAIN = 400;  // edges; with more of them, edges are straight lines, and moving shows a picture of the map
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export const edgeId = (edge) => JSON.stringify([edge.source, edge.destination, edge.verdict]);

export class Graph {
  constructor(container, { onEdge, onNode, onNothing }) {
    this.container = container;
    this.touched = false;  // the user has chosen what is in view
    this.moved = new Map();  // places that the user chose, by key
    this.keys = "";
    this.large = false;
    this.start([]);
    this.on = { onEdge, onNode, onNothing };
  }

  start(elements, viewport) {
    this.cy = cytoscape({
      container: this.container, elements, style: this.style(), layout: { name: "preset" },
      minZoom: 0.05, maxZoom: 3, boxSelectionEnabled: false, selectionType: "single", autounselectify: true,
      textureOnViewport: this.large, hideEdgesOnViewport: false, pixelRatio: this.large ? 1 : "auto", ...viewport,
    });
    this.cy.on("tap", "edge", (event) => this.on.onEdge(event.target.id()));
    this.cy.on("tap", "node.workload", (event) => this.on.onNode(event.target.id()));
    this.cy.on("tap", (event) => { if (event.target === this.cy) this.on.onNothing(); });
    this.cy.on("mouseover", "edge", (event) => event.target.addClass("hovered"));
    this.cy.on("mouseout", "edge", (event) => event.target.removeClass("hovered"));
    this.cy.on("dragpan scrollzoom pinchzoom", () => { this.touched = true; });
    this.cy.on("dragfree", "node", (event) => this.keep(event.target));
  }

  keep(node) {
    const workloads = node.isParent() ? node.descendants().filter(".workload") : node;
    workloads.forEach((workload) => this.moved.set(workload.id(), { ...workload.position() }));
  }

  // nodes and edges are those to be drawn, all of them; now in seconds since the epoch.
  update(nodes, edges, now) {
    this.restartIfSizeChanged(edges.length);
    let added = false;
    this.cy.batch(() => {
      added = this.updateNodes(nodes);
      this.updateEdges(edges, now);
    });
    if (added && !this.touched) this.fit();
  }

  // Cytoscape takes the options of a large map at its start only.
  restartIfSizeChanged(edges) {
    const large = this.large ? edges > PLAIN / 2 : edges > PLAIN;
    if (large === this.large) return;
    this.large = large;
    const elements = this.cy.elements().jsons(), viewport = { zoom: this.cy.zoom(), pan: { ...this.cy.pan() } };
    this.cy.destroy();
    this.start(elements, viewport);
  }

  // Return whether the workloads, or their groups, are others than before.
  updateNodes(nodes) {
    const present = new Set(nodes.map((node) => node.key));
    this.cy.nodes(".workload").filter((node) => !present.has(node.id())).remove();
    this.cy.nodes(".box").filter((box) => !box.children().nonempty()).remove();
    const keys = nodes.map((node) => `${node.key} ${node.group}`).sort().join("\n");
    if (keys === this.keys) return false;
    this.keys = keys;
    const places = place(nodes);
    for (const node of nodes) this.putNode(node, this.moved.get(node.key) ?? places.get(node.key));
    this.cy.nodes(".box").filter((box) => !box.children().nonempty()).remove();
    return true;
  }

  putNode(node, position) {
    const parent = this.box(`box:${boxOf(node)}`, boxOf(node), null);
    const group = this.box(`group:${boxOf(node)}:${node.group}`, node.group, parent);
    const there = this.cy.getElementById(node.key);
    if (there.nonempty()) {
      if (there.data("parent") !== group) there.move({ parent: group });
      this.cy.getElementById(node.key).position(position);
      return;
    }
    const classes = `workload ${node.kind}`;
    this.cy.add({ group: "nodes", data: { id: node.key, parent: group, label: node.name }, position: { ...position }, classes });
  }

  box(id, label, parent) {
    if (this.cy.getElementById(id).empty()) {
      this.cy.add({ group: "nodes", data: { id, label, ...(parent ? { parent } : {}) }, classes: parent ? "box group" : "box", selectable: false });
    }
    return id;
  }

  updateEdges(edges, now) {
    const present = new Set(edges.map(edgeId));
    this.cy.edges().filter((edge) => !present.has(edge.id())).remove();
    const added = [];
    for (const edge of edges) {
      const id = edgeId(edge), there = this.cy.getElementById(id);
      const label = `${ports(edge, 2)} ${rate(edge.rate)}`.trim();
      const width = Math.min(6, Math.round(2 + 2 * Math.log2(1 + edge.rate * 4)) / 2 + 0.5);
      const idle = now - edge.last > 60;
      if (there.empty()) {
        const classes = `${edge.verdict}${idle ? " idle" : ""}`;
        added.push({ group: "edges", data: { id, source: edge.source, target: edge.destination, label, width }, classes });
        continue;
      }
      if (there.data("label") !== label || there.data("width") !== width) there.data({ label, width });
      if (there.hasClass("idle") !== idle) there.toggleClass("idle", idle);
    }
    if (added.length) this.cy.add(added);
    const labelled = edges.length <= LABELLED;
    if (labelled !== this.labelled || added.length) {
      this.labelled = labelled;
      this.cy.edges().toggleClass("labelled", labelled);
      this.cy.edges().toggleClass("plain", this.large);
    }
  }

  choose(id) {
    this.chosen = id;
    this.cy.elements(".chosen, .touching").removeClass("chosen touching");
    if (id === null) return;
    const found = this.cy.getElementById(id);
    found.addClass("chosen");
    found.connectedEdges?.().addClass("touching");
    if (!this.touched) return;  // everything is in view
    const { x1, y1, x2, y2 } = this.cy.extent(), at = found.nonempty() ? found.boundingBox() : null;
    if (at && (at.x1 < x1 || at.x2 > x2 || at.y1 < y1 || at.y2 > y2)) this.show(found);
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
        "font-size": 11, "font-family": "system-ui, DejaVu Sans, sans-serif", "text-rotation": "autorotate", "min-zoomed-font-size": 7,
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
