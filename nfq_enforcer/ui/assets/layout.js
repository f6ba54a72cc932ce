// Layout: a place for each workload that depends only on the workloads there are, so that nothing jumps at an update.
//
// Workloads with the same labels stand together in a group, groups of one namespace in a box, boxes in rows. A group has
// room for the next power of two of workloads, so most new workloads move nothing.

const STEP_X = 168, STEP_Y = 74, GROUP_GAP = 84, BOX_GAP = 120;
const OTHERS = "peers outside";  // the box of everything that is no endpoint

export const boxOf = (node) => (node.kind === "endpoint" ? `namespace ${node.namespace}` : OTHERS);

// Return a Map of key to {x, y}; nodes in any order.
export function place(nodes) {
  const boxes = new Map();
  for (const node of [...nodes].sort((a, b) => (a.key < b.key ? -1 : 1))) {
    const box = boxes.get(boxOf(node)) ?? new Map();
    boxes.set(boxOf(node), box.set(node.group, [...(box.get(node.group) ?? []), node]));
  }
  const sized = [...boxes].sort(boxOrder).map(([title, groups]) => arrangeBox(title, groups));
  const places = new Map();
  for (const { part: box, x, y } of inRows(sized, BOX_GAP)) {
    for (const { part: group, x: gx, y: gy } of box.groups) {
      group.nodes.forEach((node, number) => places.set(node.key, inGroup(group, number, x + gx, y + gy)));
    }
  }
  return places;
}

// Endpoints first, then everything outside.
const boxOrder = ([a], [b]) => (a === OTHERS) - (b === OTHERS) || (a < b ? -1 : 1);

function arrangeBox(title, groups) {
  const sized = [...groups].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, nodes]) => {
    const room = 2 ** Math.ceil(Math.log2(nodes.length));
    const columns = room <= 8 ? 1 : Math.ceil(Math.sqrt(room / 2.5));
    const rows = Math.ceil(room / columns);
    return { nodes, columns, width: columns * STEP_X, height: rows * STEP_Y };
  });
  const placed = inRows(sized.sort((a, b) => b.height - a.height), GROUP_GAP);  // rows of groups of like heights
  const width = Math.max(...placed.map(({ part, x }) => x + part.width));
  const height = Math.max(...placed.map(({ part, y }) => y + part.height));
  return { title, groups: placed, width, height };
}

// Put parts side by side, in rows that make the whole about one and a half times as wide as high.
function inRows(parts, gap) {
  const area = parts.reduce((sum, { width, height }) => sum + (width + gap) * (height + gap), 0);
  const limit = Math.max(Math.sqrt(area * 1.8), ...parts.map(({ width }) => width));
  const placed = [];
  let x = 0, y = 0, rowHeight = 0;
  for (const part of parts) {
    if (x > 0 && x + part.width > limit) [x, y, rowHeight] = [0, y + rowHeight + gap, 0];
    placed.push({ part, x, y });
    x += part.width + gap;
    rowHeight = Math.max(rowHeight, part.height);
  }
  return placed;
}

// Rows and columns are shifted by turns, so that a line between two workloads passes beside those between them.
function inGroup({ columns }, number, x, y) {
  const column = number % columns, row = Math.floor(number / columns);
  return { x: x + column * STEP_X + (row % 2) * 34, y: y + row * STEP_Y + (column % 2) * 20 };
}
