// What a reader can do: keys, clicks, drags, the wheel, the buttons, and the page's address.

// Unfolds the nodes that hide a node; returns whether there were any.
const uncover = (id) => pathTo(nodes[id].parent).filter((above) => folded.delete(above)).length > 0;

function select(id) {
  selected = id;
  if (uncover(id)) return filter();
  paintSelection();
  writeHash();
  if (!marks.has(id)) return;
  const [atX, atY] = positionOf(id), w = tree.clientWidth, h = tree.clientHeight - byId("legend").offsetHeight;
  if (atX < 0 || atX > w || atY < 0 || atY > h) pan(w / 2 - atX, h / 2 - atY);
}

function fold(id) {
  if (!children[id].length) return;
  if (!folded.delete(id)) folded.add(id);
  const [oldX, oldY] = positionOf(id);
  update();
  moveMarks();
  const [newX, newY] = positionOf(id);
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
  const far = (id) => Math.hypot(positionOf(id)[0] - atX, positionOf(id)[1] - atY);
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
byId("answer").textContent = data.finished ? `Answer: ${data.answer}`
  : data.answer ? `No path finished. The best unfinished reply: ${data.answer}` : "No path reached an answer";
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
