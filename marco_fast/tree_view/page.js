"use strict";
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
const reachesEnd = nodes.map((node) => node.terminal);    // some node of the subtree is terminal
const onChosenPath = new Set(pathTo(data.answer_node));
for (let id = 1; id < nodes.length; id++) {
  children[nodes[id].parent].push(id);
  depth[id] = depth[nodes[id].parent] + 1;
}
for (let id = nodes.length - 1; id > 0; id--) {
  size[nodes[id].parent] += size[id];
  reachesEnd[nodes[id].parent] ||= reachesEnd[id];
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

function describe(id) {
  const { visits, value, terminal, answer } = nodes[id];
  const end = !terminal ? "" : answer === null ? ", finished" : `, answer ${answer}`;
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
    && (reachesEnd[id] || !inputs.finished.checked) && (onChosenPath.has(id) || !inputs.chosen.checked));
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
const place = (id) => [view.left + x[id] * scale(view.fitX), view.top + y[id] * scale(view.fitY)];

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

// ---- Drawing.

const tree = byId("tree");
const made = [];          // by node: its elements, made when it is drawn for the first time
let marks = new Map();    // by node that is drawn now: the same elements

function svg(name, attributes, ...inside) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...inside);
  return element;
}

function makeMark(id) {
  const { visits, value, terminal } = nodes[id], radius = 9 * Math.sqrt(visits / mostVisits);
  const chosen = onChosenPath.has(id) ? " chosen" : "";
  const edge = svg("path", { class: `edge${chosen}` }), halo = svg("circle", { class: "halo", r: 1 });
  const shape = svg(...terminal ? ["path", { d: "M0-1.3 1.3 0 0 1.3-1.3 0Z" }] : ["circle", { r: 1 }]);
  shape.classList.add("mark");
  if (visits) shape.style.fill = colourOf(value);
  const begin = svg("text", { class: "label begin", x: -radius - 5 });
  const end = svg("text", { class: "label end", x: radius + 8, y: 4 });
  const group = svg("g", { class: `node${chosen}`, id: `node-${id}`, role: "treeitem", "aria-label": describe(id),
    "aria-level": depth[id] + 1, "data-node": id }, halo, shape, begin, end);
  group.dataset.tip = `${describe(id)}\n${ownText[id].trim().slice(0, 300)}`;
  return { group, shape, halo, begin, end, edge, radius };
}

function draw() {
  marks = new Map(drawn.map((id) => [id, made[id] ??= makeMark(id)]));
  for (const [id, { group, begin, end }] of marks) {
    const { parent, beginning, ending } = nodes[id], isFolded = folded.has(id);
    group.classList.toggle("context", !passes[id]);
    group.classList.toggle("folded", isFolded);
    if (children[id].length) group.setAttribute("aria-expanded", !isFolded);
    end.textContent = isFolded ? `+${size[id] - 1}` : ending;
    begin.textContent = id && below(parent).length > 1 ? beginning : "";
    begin.setAttribute("y", y[id] > y[parent] ? 12 : -5);  // on the side away from the edge
  }
  const edges = [...marks.values()].map(({ edge }) => edge);
  edges.sort((a, b) => a.classList.length - b.classList.length);  // the chosen path on top
  byId("edges").replaceChildren(...edges);
  byId("nodes").replaceChildren(...[...marks.values()].map(({ group }) => group));
}

function update() {
  applyFilters();
  findMatches();
  layOut();
  draw();
  paintSelection();
  byId("shown").value = `${drawn.length} of ${nodes.length} nodes shown`;
  byId("matches").value = inputs.find.value ? `${matches.length} found` : "";
  byId("hollow").hidden = drawn.every((id) => passes[id]);
}

function moveMarks() {
  const scaleX = scale(view.fitX), scaleY = scale(view.fitY), base = 3 * Math.min(1.3, Math.max(0.5, scaleY));
  for (const [id, { group, shape, halo, radius, edge }] of marks) {
    const toX = x[id] * scaleX, toY = y[id] * scaleY, drawnRadius = radius + (onChosenPath.has(id) ? 3 : base);
    group.setAttribute("transform", `translate(${toX} ${toY})`);
    shape.setAttribute("transform", `scale(${drawnRadius})`);
    halo.setAttribute("transform", `scale(${drawnRadius + 4})`);
    const from = Math.max(0, nodes[id].parent), fromX = x[from] * scaleX, fromY = y[from] * scaleY;
    const middle = (fromX + toX) / 2;
    edge.setAttribute("d", `M${fromX} ${fromY}C${middle} ${fromY} ${middle} ${toY} ${toX} ${toY}`);
  }
  tree.classList.toggle("answers", ROW * scaleY >= 10);
  tree.classList.toggle("beginnings", ROW * scaleY >= 17 && LEVEL * scaleX >= 140);
  byId("world").setAttribute("transform", `translate(${view.left} ${view.top})`);
}

function paintSelection() {
  const matching = new Set(matches);
  for (const [id, { group }] of marks) {
    group.classList.toggle("selected", id === selected);
    group.classList.toggle("match", matching.has(id));
    group.setAttribute("aria-selected", id === selected);
  }
  tree.classList.toggle("searching", inputs.find.value !== "");
  tree.setAttribute("aria-activedescendant", marks.has(selected) ? `node-${selected}` : "");
  showPanel();
}

// ---- The panel: the selected node, and the text from the root to it.

function fillList(list, pairs) {
  byId(list).replaceChildren(...pairs.map(([name, value]) => {
    const pair = document.createElement("div");
    pair.appendChild(document.createElement("dt")).textContent = name;
    pair.appendChild(document.createElement("dd")).textContent = value;
    return pair;
  }));
}

function showPanel() {
  const { visits, value, path_confidence, token_ids, terminal, answer } = nodes[selected];
  const where = selected === data.answer_node ? ", end of the chosen path"
    : onChosenPath.has(selected) ? ", on the chosen path" : "";
  byId("title").textContent = `Node ${selected}${where}${marks.has(selected) ? "" : " (hidden now)"}`;
  fillList("numbers", [["visits", visits], ["value", visits ? valueText(value) : "none yet"],
    ["path confidence", path_confidence.toPrecision(5)], ["depth", depth[selected]], ["tokens", token_ids.length],
    ["finished", terminal ? "yes" : "no"], ...(answer === null ? [] : [["answer", answer]])]);
  byId("fold").textContent = folded.has(selected) ? "Unfold" : "Fold";
  byId("fold").disabled = !children[selected].length;
  byId("path").replaceChildren(...pathTo(selected).map(segmentOf));
  byId("path").scrollTop = byId("path").scrollHeight;
}

function segmentOf(id) {
  const segment = document.createElement("span"), { texts, confidences, logprobs, token_ids } = nodes[id];
  segment.className = id === selected ? "segment selected" : "segment";
  segment.dataset.node = id;
  segment.append(...texts.map((text, i) => tokenOf(text, confidences[i], logprobs[i], token_ids[i])));
  return segment;
}

function tokenOf(text, confidence, logprob, id) {
  const token = document.createElement("span");
  token.className = `token${confidence === null ? " forced" : ""}${text.includes("\n") ? " newline" : ""}`;
  token.textContent = text;
  // The exponent makes 0.8 clearly visible while 0.99 still looks almost like 1.
  token.style.setProperty("--amount", Math.max(0, 1 - (confidence ?? 1)) ** 0.6);
  const number = (score) => score === null ? "none, the token was forced"
    : score < 0.001 ? score.toExponential(2) : score.toPrecision(4);
  token.dataset.tip = [JSON.stringify(text), `confidence ${number(confidence)}`,
    `probability ${number(logprob === null ? null : Math.exp(logprob))}`, `token ${id}`].join("\n");
  return token;
}

// ---- Actions: keys, clicks, drags, the wheel and the buttons.

// Unfolds the nodes that hide a node; returns whether there were any.
const uncover = (id) => pathTo(nodes[id].parent).filter((above) => folded.delete(above)).length > 0;

function select(id) {
  selected = id;
  if (uncover(id)) return filter();
  paintSelection();
  writeHash();
  if (!marks.has(id)) return;
  const [atX, atY] = place(id), w = tree.clientWidth, h = tree.clientHeight - byId("legend").offsetHeight;
  if (atX < 0 || atX > w || atY < 0 || atY > h) pan(w / 2 - atX, h / 2 - atY);
}

function fold(id) {
  if (!children[id].length) return;
  if (!folded.delete(id)) folded.add(id);
  const [oldX, oldY] = place(id);
  update();
  moveMarks();
  const [newX, newY] = place(id);
  pan(oldX - newX, oldY - newY);  // the clicked node stays under the pointer
}

function filter() {
  update();
  fit();
  writeHash();
}

function nextMatch(step) {
  const at = matches.indexOf(selected) + step;
  if (matches.length) select(matches.at(at % matches.length));
}

// The node above (-1) or below (1) the selected one among the drawn nodes of its depth.
function neighbour(step) {
  const generation = drawn.filter((id) => depth[id] === depth[selected]);
  return generation[generation.indexOf(selected) + step];
}

const mainChild = () => below(selected).find((id) => onChosenPath.has(id)) ?? below(selected)[0];
const goTo = (id) => { if (id >= 0) select(id); };
const zoomBy = (factor) => zoomAt(factor, tree.clientWidth / 2, tree.clientHeight / 2);
const KEYS = {
  ArrowLeft: () => goTo(nodes[selected].parent), ArrowRight: () => goTo(mainChild()),
  ArrowUp: () => goTo(neighbour(-1)), ArrowDown: () => goTo(neighbour(1)),
  Home: () => select(0), End: () => select(data.answer_node), Enter: () => fold(selected),
  "/": () => inputs.find.focus(), "0": fit, "+": () => zoomBy(1.4), "-": () => zoomBy(1 / 1.4),
};
document.addEventListener("keydown", (event) => {
  const theirs = event.key === "Enter" ? "input, button, summary" : "input:not([type=checkbox]), #path";
  if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(KEYS, event.key)) return;
  if (event.target.closest(theirs)) return;
  event.preventDefault();
  KEYS[event.key]();
});

function inTree(event) {
  const box = tree.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

// The node under the pointer, else the nearest node within 20 pixels (a finger's width), else -1.
function nodeAt(event) {
  const hit = event.target.closest(".node"), [atX, atY] = inTree(event);
  if (hit) return Number(hit.dataset.node);
  const far = (id) => Math.hypot(place(id)[0] - atX, place(id)[1] - atY);
  const nearest = drawn.reduce((best, id) => far(id) < far(best) ? id : best);
  return far(nearest) < 20 ? nearest : -1;
}

const pointers = new Map();  // the pointers that are pressed: one pans, two zoom
let press = null;            // where a pointer was pressed, and on which node; null once it moved
tree.addEventListener("pointerdown", (event) => {
  pointers.set(event.pointerId, event);
  press = { at: inTree(event), node: nodeAt(event) };
});
tree.addEventListener("pointermove", (event) => {
  const last = pointers.get(event.pointerId), [atX, atY] = inTree(event);
  if (!last || !event.buttons) return pointers.delete(event.pointerId);  // it was released outside the page
  if (press && Math.hypot(atX - press.at[0], atY - press.at[1]) < 5) return;
  press = null;
  tree.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, event);
  const other = [...pointers.values()].find((each) => each !== event);
  if (!other) return pan(event.clientX - last.clientX, event.clientY - last.clientY);
  const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
  const [otherX, otherY] = inTree(other);
  zoomAt(apart(event) / Math.max(1, apart(last)), (atX + otherX) / 2, (atY + otherY) / 2);
});
for (const end of ["pointerup", "pointercancel"]) tree.addEventListener(end, (event) => {
  pointers.delete(event.pointerId);
  if (end === "pointerup" && press) goTo(press.node);
});
tree.addEventListener("dblclick", (event) => { if (nodeAt(event) >= 0) fold(nodeAt(event)); });
tree.addEventListener("wheel", (event) => {
  event.preventDefault();
  const speed = event.deltaMode ? 0.05 : event.ctrlKey ? 0.01 : 0.002;  // lines; pinch; pixels
  zoomAt(Math.exp(-event.deltaY * speed), ...inTree(event));
}, { passive: false });

document.addEventListener("pointerover", (event) => {
  const source = event.target.closest("[data-tip]"), tip = byId("tip");
  tip.hidden = !source;
  if (!source) return;
  tip.textContent = source.dataset.tip;
  const { clientX, clientY } = event, under = clientY + 18;
  tip.style.left = `${Math.max(4, Math.min(clientX, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${under + tip.offsetHeight < innerHeight ? under : clientY - tip.offsetHeight - 10}px`;
});

for (const input of Object.values(inputs)) input.addEventListener("input", filter);
inputs.find.addEventListener("keydown", (event) => { if (event.key === "Enter") nextMatch(event.shiftKey ? -1 : 1); });
const on = (id, action) => byId(id).addEventListener("click", action);
on("reset", () => {
  for (const input of Object.values(inputs)) input.type === "checkbox" ? input.checked = false : input.value = "";
  folded.clear();
  filter();
});
on("fold", () => fold(selected));
on("to-answer", () => select(data.answer_node));
on("fit", fit);
on("zoom-in", KEYS["+"]);
on("zoom-out", KEYS["-"]);
on("path", (event) => {
  const segment = event.target.closest(".segment");
  if (segment && getSelection().isCollapsed) select(Number(segment.dataset.node));
});
new ResizeObserver(() => { if (!view.moved) fit(); }).observe(tree);

// ---- The address keeps the filters and the selected node.

let hashTimer;
function writeHash() {
  const state = new URLSearchParams();
  for (const [name, input] of Object.entries(inputs)) {
    const value = input.type === "checkbox" ? input.checked && "1" : input.value;
    if (value) state.set(name, value);
  }
  state.set("node", selected);
  // A key that is held down would change the address hundreds of times in a few seconds, which
  // browsers refuse: only the last change of 200 ms is written.
  clearTimeout(hashTimer);
  hashTimer = setTimeout(() => history.replaceState(null, "", `#${state}`), 200);
}

function readHash() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const [name, input] of Object.entries(inputs)) {
    if (input.type === "checkbox") input.checked = state.has(name);
    else input.value = state.get(name) ?? "";
  }
  const node = Number(state.get("node") ?? data.answer_node);
  selected = node in nodes ? node : data.answer_node;
  uncover(selected);
  filter();
}

document.title = `${data.question} – search tree`;
byId("question").textContent = data.question;
byId("answer").textContent = data.answer ? `Answer: ${data.answer}` : "No path reached an answer";
fillList("facts", data.facts);
fillList("options", data.options);
byId("lowest").textContent = visited.length ? valueText(lowest) : "none";
byId("highest").textContent = spread ? valueText(highest) : "";
byId("ramp").style.background = spread ? `linear-gradient(to right, ${VIRIDIS})` : VIRIDIS.at(-1);
byId("most-visits").textContent = mostVisits;
inputs.value.step = spread ? 10 ** Math.floor(Math.log10(spread) - 1) : "any";
for (const sure of [1, 0.9, 0.7, 0.5, 0.2]) byId("scale").append(tokenOf(`${sure}`, sure, Math.log(sure), 0));
byId("scale").append(tokenOf("forced", null, null, 0));
addEventListener("hashchange", readHash);
readHash();
