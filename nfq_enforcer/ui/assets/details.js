// Details: the panel of one flow edge or one workload.

import { dayTime, element as e, name, plural, rate } from "/assets/text.js";

const documentOf = (rule) => `${rule.kind} ${rule.namespace ? `${rule.namespace}/` : ""}${rule.name}`;

function facts(pairs) {
  const list = e("dl");
  for (const [term, value] of pairs) {
    if (value === "" || value === null || value === undefined) continue;
    list.append(e("dt", {}, term), e("dd", {}, value));
  }
  return list;
}

function table(columns, rows, label) {
  const head = e("tr", {}, ...columns.map((column) => e("th", { scope: "col" }, column)));
  const body = rows.map((cells) => e("tr", {}, ...cells.map((cell) => e("td", {}, cell))));
  return e("table", { "aria-label": label }, e("thead", {}, head), e("tbody", {}, ...body));
}

const lines = (texts) => e("div", {}, ...texts.map((text) => e("div", {}, name(text))));

// The deciding rules of an edge, most flows first; a rule is named by its document and its place in it.
function rules(answer) {
  if (!answer.rules.length) return e("p", {}, "No rule is recorded for these flows: no policy was in force for them.");
  const rows = answer.rules.map((rule) => [
    rule.effect, lines([documentOf(rule), `${rule.rule}${rule.tier ? ` (${rule.tier} ${rule.priority}, ${rule.action})` : ""}`]), String(rule.flows),
  ]);
  return table(["Effect", "Rule", "Flows"], rows, "Rules that decided");
}

// Reasons of the drops, and a place for the explanation of the newest flow, which takes a while.
function why(answer) {
  const reasons = answer.reasons.map(({ reason, description, flows }) => e("p", {}, `${reason}: ${description || "no description"} (${plural(flows, "flow")})`));
  const newest = answer.flows.find((flow) => flow.uuid);
  return [...reasons, ...(newest ? [e("pre", { class: "why", tabindex: "0", "data-uuid": newest.uuid, "aria-label": "Explanation of the newest flow", "aria-live": "polite" }, "Looking for the reason…")] : [])];
}

export function edgeDetails(edge, answer, nodeName) {
  const now = answer.edge ?? edge;
  const flows = answer.flows.map((flow) => [
    dayTime(Date.parse(flow.time) / 1000), flow.port, lines([`${flow.source} → ${flow.destination}`, flow.summary]), flow.reason || flow.direction.toLowerCase(),
  ]);
  return [
    e("h2", { id: "details-title" }, name(nodeName(edge.source)), " → ", name(nodeName(edge.destination)), " ", e("span", { class: `verdict ${edge.verdict}` }, edge.verdict)),
    facts([
      ["flows", `${answer.total}${answer.total >= answer.examined ? " or more" : ""} in the log`],
      ["rate", rate(edge.rate) || "none in the last minute"],
      ["ports", lines([...now.ports, ...(now.other_ports ? [`and ${plural(now.other_ports, "flow")} to others`] : [])])],
      ["first seen", dayTime(now.first)],
      ["last seen", dayTime(now.last)],
    ]),
    e("h3", {}, "Why"),
    ...why(answer),
    e("h3", {}, "Rules that decided"),
    rules(answer),
    e("h3", {}, `Newest flows (${answer.flows.length} of ${answer.total})`),
    flows.length ? table(["Time", "Port", "Flow", edge.verdict === "DROPPED" ? "Reason" : "Decided at"], flows, "Newest flows") : e("p", {}, "The log no longer has a flow of this edge."),
  ];
}

// Labels without those that every endpoint has.
const ownLabels = (labels) => labels.filter((label) => !/^k8s:io\.(kubernetes|cilium)\./.test(label)).map((label) => label.replace(/^k8s:/, ""));

const peer = ({ identity, labels }) => `${ownLabels(labels).join(" ") || "no labels of its own"} (${identity})`;

function peers(row) {
  if (row.any_peer) return "everyone";
  const more = row.peers_total - row.peers.length;
  return lines([...row.peers.map(peer), ...(more > 0 ? [`and ${more} more`] : [])]);
}

function direction(title, side, word) {
  const state = side.enforced
    ? `Enforced: what no row allows is dropped. ${side.enforced_by.length ? `Closed by ${[...new Set(side.enforced_by.map(documentOf))].slice(0, 5).join(", ")}.` : "Closed by the enforcement mode."}`
    : "Not enforced: everything passes that no row denies.";
  const rows = side.rows.map((row) => [
    e("span", { class: row.action === "accept" ? "allow" : row.action }, row.action),
    peers(row),
    lines([...row.ports, ...row.requests]),
    lines([documentOf(row.rule), row.rule.rule]),
  ]);
  const more = side.rows_total - side.rows.length;
  return [
    e("h3", {}, title),
    e("p", {}, state),
    rows.length ? table(["Action", word, "Ports and requests", "Rule"], rows, title) : e("p", {}, "No rule has an entry here."),
    ...(more > 0 ? [e("p", {}, `and ${more} more`)] : []),
  ];
}

export function workloadDetails(node, answer) {
  return [
    e("h2", { id: "details-title" }, name(node.kind === "endpoint" ? `${node.namespace}/${node.name}` : node.name)),
    facts([
      ["labels", answer.labels ? lines(ownLabels(answer.labels)) : name(node.group)],
      ["identity", answer.identity ? String(answer.identity) : ""],
      ["node", answer.node ? name(answer.node) : ""],
      ["addresses", answer.addresses?.length ? lines(answer.addresses) : ""],
      ["policy revision", String(answer.revision)],
    ]),
    ...direction("Ingress: may connect to it", answer.ingress, "From"),
    ...direction("Egress: it may connect to", answer.egress, "To"),
  ];
}

export function plainDetails(node, sentence) {
  return [e("h2", { id: "details-title" }, name(node.name)), e("p", {}, sentence)];
}
