// Page: the state of the map, and the parts of the page that show it: drawing, lists, details, time and filter.

import { edgeDetails, plainDetails, workloadDetails } from "/assets/details.js";
import { edgeId, Graph } from "/assets/graph.js";
import { List } from "/assets/list.js";
import { ask, follow, openSession } from "/assets/server.js";
import { clockTime, dayTime, element, name, plural, ports, rate } from "/assets/text.js";
import { setUp as setUpTheme } from "/assets/theme.js";

const byId = (id) => document.getElementById(id);
const VERDICTS = ["DROPPED", "ERROR", "AUDIT", "REDIRECTED", "FORWARDED"];  // in the order of the list

const live = { nodes: new Map(), edges: new Map() };  // as the stream has it
const state = {
  status: null, away: false, filter: new URLSearchParams(location.search).get("filter") ?? "",
  window: null, until: null, past: null,  // past: {nodes, edges} of the time chosen by the slider
  open: null, opener: null, stop: () => {},
};

const shownMap = () => state.past ?? live;
const now = () => state.until ?? state.status?.now ?? Date.now() / 1000;
const nodeName = (key) => shownMap().nodes.get(key)?.name ?? live.nodes.get(key)?.name ?? key;

const graph = new Graph(byId("map"), {
  onEdge: (id) => openEdge(id, byId("map")),
  onNode: (key) => openNode(key, byId("map")),
  onNothing: () => close(),
});

const edgeList = new List(byId("edges"), byId("panel-edges").querySelector(".more"), {
  keyOf: edgeId,
  signature: (edge) => [nodeName(edge.source), nodeName(edge.destination), ports(edge), rate(edge.rate), edge.flows].join("\n"),
  render: (edge) => [
    name(nodeName(edge.source)), " → ", name(nodeName(edge.destination)), " ",
    element("span", { class: `verdict ${edge.verdict}` }, edge.verdict),
    element("span", { class: "more-text" }, [ports(edge), plural(edge.flows, "flow"), rate(edge.rate)].filter(Boolean).join(" · ")),
  ],
  onOpen: (id, button) => openEdge(id, button),
});

const nodeList = new List(byId("nodes"), byId("panel-nodes").querySelector(".more"), {
  keyOf: (node) => node.key,
  signature: (node) => [node.namespace, node.name, node.group].join("\n"),
  render: (node) => [name(node.name), element("span", { class: "more-text" }, name([node.namespace, node.group].filter(Boolean).join(" · ")))],
  onOpen: (key, button) => openNode(key, button),
});

// --- the map ---

function receive(message) {
  state.away = false;
  state.status = message.status;
  if (message.whole) {
    live.nodes.clear();
    live.edges.clear();
  }
  message.gone_edges.forEach((key) => live.edges.delete(JSON.stringify(key)));
  message.gone_nodes.forEach((key) => live.nodes.delete(key));
  message.nodes.forEach((node) => live.nodes.set(node.key, node));
  message.edges.forEach((edge) => live.edges.set(edgeId(edge), edge));
  show();
}

function visible() {
  const { nodes, edges } = shownMap();
  const since = state.window === null || state.past ? -Infinity : now() - state.window;
  const shown = [...edges.values()].filter((edge) => edge.last >= since);
  const ends = new Set(shown.flatMap((edge) => [edge.source, edge.destination]));
  return { nodes: [...nodes.values()].filter((node) => ends.has(node.key)), edges: shown };
}

const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
const edgeOrder = (a, b) => VERDICTS.indexOf(a.verdict) - VERDICTS.indexOf(b.verdict) || compare(a.source, b.source) || compare(a.destination, b.destination);

function show() {
  const { nodes, edges } = visible();
  graph.update(nodes, edges, now());
  if (!byId("panel-edges").hidden) edgeList.update(edges.sort(edgeOrder));
  if (!byId("panel-nodes").hidden) nodeList.update(nodes.sort((a, b) => compare(a.key, b.key)));
  showState(nodes.length, edges.length);
}

function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;  // a live region announces each change
}

function showState(nodes, edges) {
  const { status } = state;
  byId("empty").hidden = edges > 0;
  setText(byId("empty"), status === null ? "Connecting" : state.past || state.filter || state.window ? "No flow of this filter and time" : "No flow yet: the map grows with the traffic of the endpoints");
  setText(byId("node"), status?.node ? `of node ${status.node}` : "");
  setText(byId("counts"), `${plural(nodes, "workload")}, ${plural(edges, "edge")}`);
  byId("map").setAttribute("aria-label", `Drawing of the map: ${plural(nodes, "workload")}, ${plural(edges, "edge")}. The lists have the same content. Arrow keys move the drawing, plus and minus zoom.`);
  setText(byId("state"), trouble().join(" "));
  byId("state").classList.toggle("trouble", trouble().length > 0);
  showTime();
}

// Everything that makes the map incomplete, as sentences.
function trouble() {
  const { status, away } = state, said = [];
  if (away) said.push("The server of this page does not answer; the map is as it was last.");
  if (status?.agent.error && status.agent.error !== "connecting") said.push(`The agent is away since ${clockTime(status.agent.away_since)}: ${status.agent.error}.`);
  if (status?.lost) said.push(`${plural(status.lost, "flow")} lost: they came faster than they were read.`);
  if (status?.unreadable) said.push(`${plural(status.unreadable, "event")} of the agent not understood.`);
  if (status?.forgotten.edges) said.push(`${plural(status.forgotten.edges, "edge")} not shown any more: the map keeps those seen last.`);
  return said;
}

// --- time ---

function showTime() {
  const slider = byId("time"), log = state.status?.log;
  const first = Math.floor(log?.first ?? 0), last = Math.ceil(Math.max(log?.last ?? 0, state.status?.now ?? 0));
  slider.disabled = !log?.flows;
  if (log?.flows) {
    slider.min = first;
    slider.max = last;
    if (state.until === null) slider.value = last;
  }
  const text = state.until === null ? "live" : dayTime(state.until);
  setText(byId("shown"), text);
  slider.setAttribute("aria-valuetext", text);
  byId("live").setAttribute("aria-pressed", String(state.until === null));
}

let asked = 0;

async function goTo(until) {
  state.until = until;
  const question = ++asked;
  if (until === null) {
    state.past = null;
    show();
    return;
  }
  showTime();
  try {
    const answer = await ask("map", { filter: state.filter, until, window: state.window });
    if (question !== asked) return;  // the slider is elsewhere by now
    state.past = { nodes: new Map(answer.nodes.map((node) => [node.key, node])), edges: new Map(answer.edges.map((edge) => [edgeId(edge), edge])) };
    show();
  } catch (error) {
    state.away = error.status === 0;
    if (error.status === 401) askForToken(error.message);
  }
}

// --- details ---

function put(children) {
  const panel = byId("details");
  panel.replaceChildren(element("button", { type: "button", class: "close", "aria-label": "Close", onclick: close }, "×"), ...children);
}

function open(kind, id, opener, children) {
  state.open = { kind, id };
  state.opener = opener;
  graph.choose(id);
  edgeList.choose(kind === "edge" ? id : null);
  nodeList.choose(kind === "node" ? id : null);
  put(children);
  byId("details").hidden = false;
  graph.resize();
  byId("details").focus();
}

async function fill(kind, id, question, render) {
  let children;
  try {
    children = render(await question());
  } catch (error) {
    children = [element("h2", { id: "details-title" }, name(kind === "node" ? nodeName(id) : "Flows")), element("p", { role: "alert" }, error.message)];
  }
  if (state.open?.kind !== kind || state.open.id !== id) return;
  put(children);
  explain(byId("details").querySelector(".why"));
}

// Fill in the explanation of a flow, if the panel has a place for it.
async function explain(place) {
  if (!place) return;
  try {
    const { lines } = await ask("why", { filter: state.filter, uuid: place.dataset.uuid });
    place.textContent = lines.join("\n");
  } catch (error) {
    place.textContent = error.message;
  }
}

function openEdge(id, opener) {
  const edge = shownMap().edges.get(id) ?? live.edges.get(id);
  if (!edge) return;
  open("edge", id, opener, [element("h2", { id: "details-title" }, name(nodeName(edge.source)), " → ", name(nodeName(edge.destination)))]);
  const { source, destination, verdict } = edge;
  const span = state.until === null ? { until: null, window: null } : { until: state.until, window: state.window };
  fill("edge", id, () => ask("edge", { filter: state.filter, source, destination, verdict, ...span }), (answer) => edgeDetails(edge, answer, nodeName));
}

function openNode(key, opener) {
  const node = shownMap().nodes.get(key) ?? live.nodes.get(key);
  if (!node) return;
  open("node", key, opener, [element("h2", { id: "details-title" }, name(node.name))]);
  const isHost = node.key === "reserved:host";
  if (node.kind !== "endpoint" && !isHost) {
    put(plainDetails(node, "It is no endpoint, so no policy is compiled for it: the policies of the endpoints that it talks to decide."));
    return;
  }
  fill("node", key, () => ask("workload", { name: isHost ? "host" : node.key }), (answer) => workloadDetails(node, answer));
}

function close() {
  if (!state.open) return;
  const { opener } = state;
  byId("details").hidden = true;
  byId("details").replaceChildren();
  state.open = state.opener = null;
  graph.choose(null);
  edgeList.choose(null);
  nodeList.choose(null);
  graph.resize();
  (opener?.isConnected ? opener : byId("map")).focus();
}

// --- filter ---

async function setFilter(text) {
  const error = byId("filter-error");
  try {
    await ask("map", { filter: text, window: 0, until: 0 });
    error.textContent = "";
    byId("filter").removeAttribute("aria-invalid");
  } catch (refused) {
    if (refused.status === 401) askForToken("");
    error.textContent = refused.message;
    byId("filter").setAttribute("aria-invalid", "true");
    return;
  }
  state.filter = text;
  history.replaceState(null, "", text ? `?${new URLSearchParams({ filter: text })}` : location.pathname);
  connect();
  if (state.until !== null) goTo(state.until);
}

function connect() {
  state.stop();
  state.stop = follow(state.filter, receive, () => {
    state.away = true;
    show();
    openSession("").catch((error) => { if (error.status === 401) askForToken(""); });
  });
}

// --- token ---

function askForToken(sentence) {
  state.stop();
  byId("token-error").textContent = sentence;
  if (!byId("token").open) byId("token").showModal();
}

async function start(token) {
  try {
    await openSession(token);
  } catch (error) {
    if (error.status === 401) return askForToken(token ? error.message : "");
    state.away = true;
    show();
    setTimeout(() => start(token), 2000);
    return;
  }
  if (byId("token").open) byId("token").close();
  byId("filter").value = state.filter;
  if (state.filter) await setFilter(state.filter);
  else connect();
}

// --- controls ---

function choosePanel(chosen) {
  for (const tab of document.querySelectorAll('[role="tab"]')) {
    const selected = tab.id === chosen;
    tab.setAttribute("aria-selected", String(selected));
    tab.tabIndex = selected ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !selected;
  }
  show();
}

function onMapKey(event) {
  const step = 60;
  const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
  if (moves[event.key]) graph.pan(...moves[event.key]);
  else if (event.key === "+" || event.key === "=") graph.zoom(1.25);
  else if (event.key === "-") graph.zoom(0.8);
  else if (event.key === "0") graph.showAll();
  else return;
  event.preventDefault();
}

function setUp() {
  setUpTheme(byId("theme"), () => graph.recolour());
  byId("filter-form").addEventListener("submit", (event) => {
    event.preventDefault();
    setFilter(byId("filter").value.trim());
  });
  byId("filter").addEventListener("search", () => { if (!byId("filter").value && state.filter) setFilter(""); });
  byId("window").addEventListener("change", (event) => {
    state.window = event.target.value ? Number(event.target.value) : null;
    if (state.until === null) show();
    else goTo(state.until);
  });
  let timer;
  byId("time").addEventListener("input", (event) => {
    const slider = event.target, until = Number(slider.value);
    clearTimeout(timer);
    state.until = until >= Number(slider.max) ? null : until;
    showTime();
    timer = setTimeout(() => goTo(state.until), 80);
  });
  byId("live").addEventListener("click", () => goTo(null));
  byId("fit").addEventListener("click", () => graph.showAll());
  byId("arrange").addEventListener("click", () => { graph.arrange(); show(); graph.showAll(); });
  byId("zoom-in").addEventListener("click", () => graph.zoom(1.25));
  byId("zoom-out").addEventListener("click", () => graph.zoom(0.8));
  byId("map").addEventListener("keydown", onMapKey);
  for (const tab of document.querySelectorAll('[role="tab"]')) {
    tab.addEventListener("click", () => choosePanel(tab.id));
    tab.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      const other = [...document.querySelectorAll('[role="tab"]')].find((one) => one !== tab);
      choosePanel(other.id);
      other.focus();
    });
  }
  document.addEventListener("keydown", (event) => {
    if (byId("token").open) return;
    if (event.key === "Escape") close();
    if (event.key === "/" && !event.target.matches("input, select")) {
      event.preventDefault();
      byId("filter").focus();
    }
  });
  byId("token").addEventListener("cancel", (event) => event.preventDefault());
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    start(byId("token-text").value.trim());
  });
  new ResizeObserver(() => graph.resize()).observe(byId("map"));
  const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
  show();
  start(token);
}

setUp();
