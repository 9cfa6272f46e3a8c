"""What the page draws: nodes, paths, colours, tokens, labels and the header."""

import itertools
import re
import time

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.support.browser import luminance
from tests.support.saved_trees import (
    CHOSEN,
    EVERY,
    LARGE,
    NODES,
    PARTS,
    TREE,
    as_tree,
    older,
    path_to,
    small_tree,
)


def test_two_thousand_nodes_are_drawn_fast_and_all_in_view(page):
    assert max(len(path_to(LARGE["nodes"], node)) for node in range(2000)) > 15
    begin = time.monotonic()
    page.open(LARGE)
    seconds = time.monotonic() - begin
    assert page.ids() == list(range(2000))
    assert seconds < 8  # one on a machine that does nothing else
    assert page["shown"].text == "2000 of 2000 nodes shown"
    assert page.ids(".node.chosen") == path_to(LARGE["nodes"], LARGE["answer_node"])
    assert len(set(page.of_all(".node", "e.getAttribute('transform')"))) == 2000
    (pane,), (legend,) = page.rects("#pane"), page.rects("#legend")
    for box in page.rects(".mark"):
        assert pane["left"] <= box["left"] <= box["right"] <= pane["right"]
        assert pane["top"] <= box["top"] <= box["bottom"] <= legend["top"]
    # Rows of a pixel have no room for labels.
    assert not any(page.of_all(".label", "e.checkVisibility()"))


def test_the_chosen_path_is_marked_and_nothing_else(page):
    page.open(TREE)
    assert page.ids(".node.chosen") == CHOSEN
    assert page.ids(".node.selected") == [TREE["answer_node"]]
    widths = page.styles("#edges .edge", "strokeWidth")
    count = len(CHOSEN)
    assert widths == ["1px"] * (300 - count) + ["3.5px"] * count  # the last lie on top
    (plain, chosen) = (set(page.styles(f"#edges .edge{kind}", "stroke")) for kind in PARTS)
    assert len(plain) == len(chosen) == 1
    assert plain != chosen
    marks = [set(page.styles(f".node{kind} .mark", "strokeWidth")) for kind in PARTS]
    assert marks == [{"0.75px"}, {"2.5px"}]


def rising(numbers: list[float]) -> bool:
    return all(after - before > -1e-3 for before, after in itertools.pairwise(numbers))


def test_colour_size_and_shape_say_value_visits_and_end(page):
    page.open(TREE)
    by_value = sorted(NODES, key=lambda node: node["value"])
    drawn = page.of_all(".node", "+e.dataset.node")
    fills = dict(zip(drawn, page.styles(".mark", "fill"), strict=True))
    ends = [fills[by_value[at]["id"]] for at in (0, -1)]
    hexes = [
        "".join(f"{round(255 * float(part)):02x}" for part in re.findall(r"\d\.?\d*", end)[:3])
        for end in ends
    ]
    assert hexes == ["440154", "fde725"]  # viridis
    assert rising([luminance(fills[node["id"]]) for node in by_value])
    assert page["lowest"].text == f"{by_value[0]['value']:.4f}"
    assert page["highest"].text == f"{by_value[-1]['value']:.4f}"
    shapes = page.of_all(".mark", "e.tagName")
    assert shapes == ["path" if NODES[node]["terminal"] else "circle" for node in drawn]
    sizes = {node: box["width"] for node, box in zip(drawn, page.rects(".mark"), strict=True)}
    plain = [node for node in NODES if not node["terminal"] and node["id"] not in CHOSEN]
    plain.sort(key=lambda node: node["visits"])
    assert rising([sizes[node["id"]] for node in plain])
    assert sizes[0] > 3 * sizes[plain[0]["id"]] > 3
    assert page["most-visits"].text == str(NODES[0]["visits"])


def test_a_token_is_coloured_by_its_confidence(page):
    page.open(TREE)
    expected = [confidence for node in CHOSEN for confidence in NODES[node]["confidences"]]
    amounts = [0 if c is None else (1 - c) ** 0.6 for c in expected]
    colours = page.styles("#path .token", "backgroundColor")
    alphas = [float(re.findall(r"\d[\d.e-]*", colour)[-1]) for colour in colours]
    assert alphas == pytest.approx(amounts, abs=0.01)
    assert max(alphas) > 0.3
    forced = [confidence is None for confidence in expected]
    assert any(forced)
    assert page.of_all("#path .token", "e.matches('.forced')") == forced
    slanted = [style == "italic" for style in page.styles("#path .token", "fontStyle")]
    assert slanted == forced
    # What has no ink of its own gets some, for the eye and the pointer.
    page.open(small_tree())
    page.run("document.querySelector('#path .token').textContent = ''")
    query = "getComputedStyle(e, '::before').content"
    assert page.of_all("#path .token", query) == ['"·"', "none", "none", '"·"', "none"]
    page.open(small_tree(answer_node=4))
    assert page.of_all("#path .token", query) == ["none", "none", '"↵"', "none"]


def test_a_tip_tells_the_scores_of_a_token(page):
    page.open(small_tree(), "#node=4")
    none = "none, the token was forced"
    tips = [
        '"ber"\nconfidence 0.5000\nprobability 0.2500\ntoken 8',
        f'"Wait!\\n"\nconfidence {none}\nprobability {none}\ntoken 13',
    ]
    tokens = page.browser.find_elements(By.CSS_SELECTOR, "#path .token")
    for token, tip in zip(tokens[1:3], tips, strict=True):
        page.hover(token)
        assert page["tip"].text == tip
        (box,) = page.rects("#tip")
        assert 0 <= box["left"] < box["right"] <= 1300
        assert 0 <= box["top"] < box["bottom"] <= 850
    page.hover(page.mark(3))
    assert page["tip"].text == "node 3: 1 visits, value 0.9000, answer 3\nryé"
    page.hover(page["question"])
    assert not page["tip"].is_displayed()
    # In the corner of a low window it stays inside, as wide as it wants.
    page.media(1300, 450)
    page.open(TREE)
    left = page.of_all("#path .token", "e.textContent.trim() ? e.getClientRects()[0].left : 0")
    tokens = page.browser.find_elements(By.CSS_SELECTOR, "#path .token")
    page.run("arguments[0].scrollIntoView(false)", tokens[left.index(max(left))])
    page.hover(tokens[left.index(max(left))])
    (box,) = page.rects("#tip")
    assert max(left) < box["right"] <= 1300
    assert box["width"] > 100
    marks = page.browser.find_elements(By.CSS_SELECTOR, ".mark")
    bottoms = [box["bottom"] for box in page.rects(".mark")]
    page.hover(marks[bottoms.index(max(bottoms))])
    (box,) = page.rects("#tip")
    assert 200 < box["top"] < box["bottom"] <= 450


def test_labels_tell_answers_and_where_siblings_part(page):
    tree = small_tree()
    tree["nodes"][3] |= {"texts": ["<Output>", "4", "2</Output>"], "answer": "42"}
    tree["nodes"][2]["texts"] = ["straight on and on and on to the very end"]
    page.open(tree)
    query = "[+e.closest('.node').dataset.node, e.classList[1], e.textContent, e.checkVisibility()]"
    labels = {(node, kind): text for node, kind, text, seen in page.of_all(".label", query) if text}
    assert labels == {
        (1, "begin"): "…wber",
        (2, "begin"): "…ight on and on and o…",
        (3, "begin"): "<Output>42</Output>",
        (4, "begin"): "Wait! <b>",
        (3, "end"): "42",
    }
    assert all(page.of_all(".label", "e.checkVisibility()"))
    # A beginning stands on the side of its edge that the edge does not come from.
    sides = dict(
        page.of_all(".label.begin", "[e.closest('.node').dataset.node, +e.getAttribute('y')]")
    )
    assert [sides[node] > 0 for node in "1234"] == [False, True, False, True]
    assert "answer\n42" in page["numbers"].text
    # None lies on another's text.
    boxes = [box for box in page.rects(".label") if box["width"]]
    for one, other in itertools.combinations(boxes, 2):
        across = one["left"] < other["right"] and other["left"] < one["right"]
        assert not (across and one["top"] < other["bottom"] and other["top"] < one["bottom"])


def test_a_file_without_texts_shows_token_ids(page):
    tree = small_tree()
    for node in tree["nodes"]:
        del node["texts"]
    page.open(tree)
    assert page["path"].get_property("textContent") == "⟨7⟩⟨8⟩⟨10⟩⟨11⟩⟨12⟩"
    page["find"].send_keys("⟨8⟩⟨1")
    assert page.ids(".node.match") == [3, 4]


def test_the_header_says_what_the_search_was(page):
    page.open(TREE)
    assert page["question"].text == TREE["question"]
    assert page.browser.title.startswith(TREE["question"])
    assert page["answer"].text == "Answer: 3"
    facts = page["facts"].text.split("\n")
    assert dict(zip(facts[::2], facts[1::2], strict=True)) == {
        "final": "3",
        "confidence": "0.91235",
        "support": "80%",
        "model": "nano-marco",
        "stopped by": "expansions",
        "expansions": "12,345",
        "expansions/s": "17.3",
        "tokens": "640",
        "nodes": "300",
        "depth": str(max(len(path_to(NODES, node)) for node in EVERY) - 1),
        "seed": str(2**62 + 1),
    }
    page.browser.find_element(By.TAG_NAME, "summary").click()
    options = ["action", "mini-step", "c_uct", "1.414", "max_tokens", "null", "seed"]
    assert page["options"].text.split("\n") == [*options, str(2**62 + 1)]
    stats = {"finished_paths": 4, "distinct_paths": 7}
    page.open(small_tree(answer="", finished=False, final="", stats=stats))
    assert page["answer"].text == "No path reached an answer"
    assert "expansions/s" not in page["facts"].text
    assert "support" not in page["facts"].text
    assert "finished paths\n4\ndistinct paths\n7" in page["facts"].text


def ended(page, node: int) -> list[str]:
    """What the panel says of a node's end."""
    page.run("location.hash = arguments[0]", f"node={node}")
    page.settle()
    rows = page["numbers"].text.split("\n")
    said = dict(zip(rows[::2], rows[1::2], strict=True))
    return [said.get(each, "") for each in ("ended", "finished", "answer")]


def test_why_a_path_ended_and_whether_it_finished_agree_everywhere(page):
    tree = small_tree()
    page.open(tree)
    shapes = page.of_all(".mark", "e.getAttribute('d')")
    drawn = page.of_all(".node", "+e.dataset.node")
    corners = {node: shape for node, shape in zip(drawn, shapes, strict=True) if shape}
    assert set(corners) == {3, 4}
    assert corners[3] != corners[4]  # a diamond and a square
    assert ended(page, 3) == ["end of the text", "yes", "3"]
    assert ended(page, 4) == ["loop", "no", ""]
    assert ended(page, 1) == ["", "no", ""]
    names = page.of_all(".node", "e.getAttribute('aria-label').split(', ').at(-1)")
    assert dict(zip(drawn, names, strict=True))[4] == "unfinished: loop"
    page["finished"].click()
    assert page.ids() == [0, 1, 3]
    page.open(tree | {"finished": False, "final": "", "support": 0.0})
    assert page["answer"].text == "The answer rule chose no path. The best: 3"
    # Without a finished path the best unfinished reply is shown as such, here and at its node.
    for node in tree["nodes"]:
        node |= {"answer": None}
    page.open(tree | {"finished": False, "final": "", "support": 0.0, "answer": "straw so far"})
    assert page["answer"].text == "No path finished. The best unfinished reply: straw so far"
    assert ended(page, 3) == ["end of the text", "no", ""]
    # Version 1 knows its answers by their tags.
    tree = small_tree(answer="42")
    tree["nodes"][3]["texts"] = ["<Output>", "42", "</Output>"]
    page.open(older(tree))
    assert page["answer"].text == "Answer: 42"
    assert ended(page, 3) == ["yes", "yes", "42"]
    assert ended(page, 4) == ["yes", "no", ""]


def test_odd_trees_are_shown_too(page):
    root = {**small_tree()["nodes"][0], "visits": 0, "value": 0.0}
    page.open(as_tree([root], answer="", finished=False, stats={}, config={}))
    assert page.ids() == [0]
    assert page["lowest"].text == "none"
    assert "value\nnone yet" in page["numbers"].text
    page.keys(Keys.ARROW_RIGHT, Keys.ARROW_UP, Keys.ENTER, "0", "+")
    assert page.ids(".node.selected") == [0]
    # Values that differ in their last bits alone are one value, with one colour.
    tree = small_tree()
    for node in tree["nodes"]:
        node["value"] = 0.99996 + node["id"] * 1e-16
    page.open(tree)
    assert len(set(page.styles(".mark", "fill"))) == 1
    assert page["lowest"].text + page["highest"].text == "0.99996"
    # A function of the reader's own may give any values.
    for node in tree["nodes"]:
        node["value"] = -1000.0 * node["id"]
    page.open(tree)
    assert [page[name].text for name in ("lowest", "highest")] == ["-4000.0000", "0.0000"]
    # A chain deeper than recursion in Python would go.
    link = small_tree()["nodes"][1]
    chain = [{**link, "id": index, "parent": index - 1} for index in range(1500)]
    page.open(as_tree(chain, answer_node=9))
    assert len(page.ids()) == 1500
