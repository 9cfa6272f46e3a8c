// The elements that show the tree: nodes and edges, and the panel of the selected node.

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
  const { visits, value, terminal, answer } = nodes[id], radius = 9 * Math.sqrt(visits / mostVisits);
  const chosen = onChosenPath.has(id) ? " chosen" : "";
  const edge = svg("path", { class: `edge${chosen}` }), halo = svg("circle", { class: "halo", r: 1 });
  const corners = answer !== null ? "M0-1.3 1.3 0 0 1.3-1.3 0Z" : "M-.9-.9H.9V.9H-.9Z";
  const shape = svg(...terminal ? ["path", { d: corners }] : ["circle", { r: 1 }]);
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
    ...(terminal ? [["ended", endOf(nodes[selected])]] : []), ["finished", answer === null ? "no" : "yes"],
    ...(answer === null ? [] : [["answer", answer]])]);
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
