"use strict";
// The tree and what follows from it: which nodes are drawn, and at which position.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const nodes = data.nodes;  // indexed by id; a parent comes before its children; the root is 0

// Viridis from its low end to its high end; a value between two colours gets a mixture of them.
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779",
                 "#6ece58", "#b5de2b", "#fde725"];
// Pixels at full size: from a fork to its children, from a node to an only child, between two leaves.
const LEVEL = 170, BEAD = 15, ROW = 22;
const MARGIN = { left: 24, right: 110, top: 24, bottom: 16 };

// ---- The tree: children, depths, sizes of subtrees, the range of the values.

const children = nodes.map(() => []);
const depth = nodes.map(() => 0);
const size = nodes.map(() => 1);                          // nodes in the subtree
const finishes = nodes.map((node) => node.answer !== null);  // some path of the subtree is finished
const onChosenPath = new Set(pathTo(data.answer_node));
for (let id = 1; id < nodes.length; id++) {
  children[nodes[id].parent].push(id);
  depth[id] = depth[nodes[id].parent] + 1;
}
for (let id = nodes.length - 1; id > 0; id--) {
  size[nodes[id].parent] += size[id];
  finishes[nodes[id].parent] ||= finishes[id];
}
const visited = nodes.filter((node) => node.visits > 0);
const [lowest, highest] = visited.reduce(
  ([low, high], { value }) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
// Values that differ only by the rounding of their sums count as equal.
const spread = highest - lowest > 1e-9 * Math.max(1, Math.abs(highest)) ? highest - lowest : 0;
const mostVisits = nodes.reduce((most, node) => Math.max(most, node.visits), 1);
const ownText = nodes.map((node) => node.texts.join(""));

function pathTo(id) {
  const path = [];
  for (; id >= 0; id = nodes[id].parent) path.push(id);
  return path.reverse();
}

function valueText(value) {
  const digits = 2 - Math.floor(Math.log10(spread));
  return spread ? value.toFixed(Math.min(9, Math.max(4, digits))) : value.toPrecision(5);
}

function colourOf(value) {
  const last = VIRIDIS.length - 1, at = spread ? (value - lowest) / spread * last : last;
  const from = Math.min(Math.floor(at), last - 1);
  return `color-mix(in srgb, ${VIRIDIS[from + 1]} ${(at - from) * 100}%, ${VIRIDIS[from]})`;
}

// Why nothing follows a node; a file of version 1 does not say it.
const ENDS = { eos: "end of the text", reply: "end of the reply", loop: "loop", context: "full context",
               kv_full: "full KV cache" };
const endOf = ({ terminal, end }) => !terminal ? "" : ENDS[end] ?? "yes";

function describe(id) {
  const { visits, value, terminal, end: why, answer } = nodes[id];
  const end = answer !== null ? `, answer ${answer}` : !terminal ? "" : `, unfinished${why ? `: ${ENDS[why]}` : ""}`;
  return `node ${id}: ${visits} visits, ${visits ? `value ${valueText(value)}` : "no value yet"}${end}`;
}

// ---- Which nodes are drawn: filters keep some nodes, and a folded node hides the nodes below it.

const inputs = { visits: byId("min-visits"), value: byId("min-value"), finished: byId("finished"),
                 chosen: byId("chosen"), find: byId("find") };
const folded = new Set();
let selected = data.answer_node;
let passes = [];   // by node: whether it meets every filter
let kept = [];     // by node: whether it, or a node below it, meets every filter
let matches = [];  // the kept nodes in which an occurrence of the wanted text ends
let drawn = [];    // the kept nodes that no folded node hides, depth first
const below = (id) => folded.has(id) ? [] : children[id].filter((child) => kept[child]);

function applyFilters() {
  const minVisits = inputs.visits.valueAsNumber || 0;
  const minValue = inputs.value.valueAsNumber;  // NaN in an empty field
  passes = nodes.map((node, id) => node.visits >= minVisits
    && (Number.isNaN(minValue) || (node.visits > 0 && node.value >= minValue))
    && (finishes[id] || !inputs.finished.checked) && (onChosenPath.has(id) || !inputs.chosen.checked));
  kept = passes.slice();
  for (let id = nodes.length - 1; id > 0; id--) kept[nodes[id].parent] ||= kept[id];
}

// A match may begin in the nodes above, so each node is searched together with the end of the text
// before it.
function findMatches() {
  const wanted = inputs.find.value.toLowerCase(), ends = [];
  matches = [];
  if (wanted) nodes.forEach((node, id) => {
    const text = (ends[node.parent] ?? "") + ownText[id].toLowerCase();
    if (kept[id] && text.includes(wanted)) matches.push(id);
    ends[id] = wanted.length > 1 ? text.slice(1 - wanted.length) : "";
  });
}

// ---- Positions: each leaf has a row of its own, a parent stands halfway between its first and its
// last child, and a node with one child stands close to it.

const x = [0], y = [];  // by node, in pixels at full size
let width = 0, height = 0;

function layOut() {
  const stack = [0];
  drawn = [];
  width = height = 0;
  while (stack.length) {
    const id = stack.pop(), inside = below(id);
    drawn.push(id);
    stack.push(...inside.toReversed());
    for (const child of inside) x[child] = x[id] + (inside.length > 1 ? LEVEL : BEAD);
    if (inside.length > 1 && height) height += ROW / 2;  // a gap between the rows of two forks
    width = Math.max(width, x[id]);
    if (!inside.length) y[id] = height, height += ROW;
  }
  for (const id of drawn.toReversed()) {
    const inside = below(id);
    if (inside.length) y[id] = (y[inside[0]] + y[inside.at(-1)]) / 2;
  }
  height -= ROW;
}

// At zoom 1 the factors fitX and fitY squeeze the whole tree into the window. Zooming in first takes
// this squeezing back, on each axis separately, and then enlarges both axes.
const view = { left: 0, top: 0, zoom: 1, fitX: 1, fitY: 1, moved: false };
const scale = (fitted) => Math.max(Math.min(fitted * view.zoom, 1), Math.min(view.fitX, view.fitY) * view.zoom);
const positionOf = (id) => [view.left + x[id] * scale(view.fitX), view.top + y[id] * scale(view.fitY)];

function fit() {
  const roomX = tree.clientWidth - MARGIN.left - MARGIN.right;
  const roomY = tree.clientHeight - byId("legend").offsetHeight - MARGIN.top - MARGIN.bottom;
  const squeeze = (room, extent) => Math.max(1e-4, Math.min(1, room / Math.max(1, extent)));
  Object.assign(view, { zoom: 1, fitX: squeeze(roomX, width), fitY: squeeze(roomY, height), moved: false });
  view.left = MARGIN.left + Math.max(0, roomX - width * view.fitX) / 2;
  view.top = MARGIN.top + Math.max(0, roomY - height * view.fitY) / 2;
  moveMarks();
}

function zoomAt(factor, atX, atY) {
  const [oldX, oldY] = [scale(view.fitX), scale(view.fitY)];
  view.zoom = Math.min(4 / Math.min(view.fitX, view.fitY), Math.max(0.5, view.zoom * factor));
  view.left = atX - (atX - view.left) * scale(view.fitX) / oldX;
  view.top = atY - (atY - view.top) * scale(view.fitY) / oldY;
  view.moved = true;
  moveMarks();
}

function pan(byX, byY) {
  view.left += byX;
  view.top += byY;
  view.moved = true;
  byId("world").setAttribute("transform", `translate(${view.left} ${view.top})`);
}
