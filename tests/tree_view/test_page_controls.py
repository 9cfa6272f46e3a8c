"""What the page does when its reader filters, searches, clicks, presses keys, pans and zooms."""

from collections.abc import Callable

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.support.saved_trees import CHOSEN, EVERY, NODES, TREE, kept, path_to, small_tree

FINISHED = kept(NODES, lambda node: node["terminal"])
FILTERS: dict[str, tuple[dict[str, str], Callable[[dict], bool]]] = {
    "visits": ({"min-visits": "3"}, lambda node: node["visits"] >= 3),
    "value": ({"min-value": ".95"}, lambda node: node["value"] >= 0.95),
    "finished": ({"finished": ""}, lambda node: node["id"] in FINISHED),
    "chosen": ({"chosen": ""}, lambda node: node["id"] in CHOSEN),
    "two": (
        {"min-visits": "2", "min-value": ".95"},
        lambda node: node["visits"] >= 2 and node["value"] >= 0.95,
    ),
    "none": ({"min-visits": "5000"}, lambda node: False),
}


def test_filters_show_exactly_what_passes_and_what_is_above_it(page):
    page.open(TREE)
    counts = set()
    for settings, passes in FILTERS.values():
        for name, text in settings.items():
            page[name].send_keys(text) if text else page[name].click()
        expected = kept(NODES, passes)
        assert page.ids() == sorted(expected)
        assert page["shown"].text == f"{len(expected)} of 300 nodes shown"
        hollow = sorted(node for node in expected if not passes(NODES[node]))
        assert page.ids(".node.context") == hollow
        assert page["hollow"].is_displayed() == bool(hollow)
        counts.add(len(expected))
        page["reset"].click()
        assert page.ids() == EVERY
    assert len(counts | {300}) == len(FILTERS) + 1  # each of them does something of its own


def test_a_node_without_a_visit_passes_no_least_value(page):
    tree = small_tree()
    tree["nodes"][2] |= {"visits": 0, "value": 0.0}
    page.open(tree, "#value=-1")
    assert page.ids() == [0, 1, 3, 4]


def test_a_search_finds_text_across_tokens_and_nodes(page):
    page.open(small_tree())
    for text, found in {"rawBERry": [3], "straw": [1], "b": [1, 4], "É": [3], "zz": []}.items():
        page["find"].clear()
        page["find"].send_keys(text)
        assert page.ids(".node.match") == found
        assert page["matches"].text == f"{len(found)} found"
    assert set(page.styles(".node:not(.selected) .mark", "opacity")) == {"0.3"}
    page["find"].clear()
    page["find"].send_keys("r", Keys.BACKSPACE)
    assert set(page.styles(".mark", "opacity")) == {"1"}


def test_enter_walks_the_matches_and_opens_what_hides_them(page):
    page.open(TREE, "#node=0")
    joined, found, wanted = ["".join(node["texts"]) for node in NODES], [], "café wait"
    for node in EVERY:
        text = "".join(joined[each] for each in path_to(NODES, node))
        tail = len(joined[node]) + len(wanted) - 1
        if wanted in text[-tail:]:
            found.append(node)
    assert 3 < len(found) < 100
    page.keys(Keys.ENTER)  # the root folds
    assert page.ids() == [0]
    page["find"].send_keys(wanted)
    assert page["matches"].text == f"{len(found)} found"
    for keys, at in (((), 0), ((), 1), ((Keys.SHIFT,), 0), ((Keys.SHIFT,), -1), ((), 0)):
        page["find"].send_keys(*keys, Keys.ENTER)
        assert page.ids(".node.selected") == [found[at]]
        assert page.ids(".node.match") == found
    assert page.ids() == EVERY


def test_a_click_shows_the_path(page):
    page.open(small_tree())
    assert page["title"].text == "Node 3, end of the chosen path"
    page.mark(4).click()
    assert page.ids(".node.selected") == [4]
    assert page["title"].text == "Node 4"
    assert page["path"].get_property("textContent") == "strawberWait!\n<b>"
    assert page.of_all(".segment", "+e.dataset.node") == [0, 1, 4]
    assert page.ids(".segment.selected") == [4]
    for pair in ("visits\n1", "value\n0.7000", "path confidence\n0.50000", "depth\n2", "tokens\n2"):
        assert pair in page["numbers"].text
    page.browser.find_element(By.CSS_SELECTOR, ".segment[data-node='1']").click()
    assert page.ids(".node.selected") == [1]
    assert page["title"].text == "Node 1, on the chosen path"
    # A finger need not hit the mark.
    assert page.rects("#node-2 .mark")[0]["width"] / 2 < 12
    beside = ActionChains(page.browser, duration=0)
    beside.move_to_element_with_offset(page.mark(2), 14, 0).click().perform()
    assert page.ids(".node.selected") == [2]


WALK = [
    (Keys.ARROW_RIGHT, 1),
    (Keys.ARROW_DOWN, 2),
    (Keys.ARROW_RIGHT, 2),  # nothing below
    (Keys.ARROW_DOWN, 2),  # nothing further down
    (Keys.ARROW_UP, 1),
    (Keys.ARROW_RIGHT, 3),
    (Keys.ARROW_UP, 3),
    (Keys.ARROW_DOWN, 4),
    (Keys.ARROW_LEFT, 1),
    (Keys.HOME, 0),
    (Keys.ARROW_LEFT, 0),
    (Keys.END, 3),
]


def test_keys_walk_the_tree(page):
    page.open(small_tree(), "#node=0")
    for key, node in WALK:
        page.keys(key)
        assert page.ids(".node.selected") == page.ids("[aria-selected=true]") == [node], (key, node)
        assert page["tree"].get_attribute("aria-activedescendant") == f"node-{node}"
    # Right goes along the chosen path, wherever it lies among the children.
    page.open(small_tree(answer_node=4), "#node=1")
    page.keys(Keys.ARROW_RIGHT)
    assert page.ids(".node.selected") == [4]
    # In a field the same keys write, and with Control they are the browser's.
    page.keys("/", "a0", Keys.ARROW_LEFT, Keys.HOME)
    assert page["find"].get_attribute("value") == "a0"
    page.run("document.activeElement.blur()")
    ActionChains(page.browser).key_down(Keys.CONTROL).send_keys(Keys.HOME).key_up(
        Keys.CONTROL
    ).perform()
    assert page.ids(".node.selected") == [4]


def test_a_node_folds_and_unfolds(page):
    page.open(TREE)
    top = CHOSEN[1]
    left = [node for node in EVERY if top not in path_to(NODES, node)[:-1]]
    page.mark(top).click()
    place = page.centre(top)
    for fold in (lambda: page.keys(Keys.ENTER), page["fold"].click):
        fold()
        assert page.ids() == left
        assert page.of_all(f"#node-{top} .label.end", "e.textContent") == [f"+{300 - len(left)}"]
        assert page.of_all(f"#node-{top} .label.end", "e.checkVisibility()") == [True]
        assert page.centre(top) == pytest.approx(place, abs=1)
        assert page["fold"].text == "Unfold"
        assert page[f"node-{top}"].get_attribute("aria-expanded") == "false"
        fold()
        assert page.ids() == EVERY
        assert page["fold"].text == "Fold"
        assert page[f"node-{top}"].get_attribute("aria-expanded") == "true"
    ActionChains(page.browser, duration=0).double_click(page.mark(top)).perform()
    assert page.ids() == left
    page["to-answer"].click()  # what is hidden opens when it is wanted
    assert page.ids() == EVERY
    assert page.ids(".node.selected") == [TREE["answer_node"]]
    assert not page["fold"].is_enabled()


def test_the_view_pans_zooms_and_fits(page):
    page.open(TREE)
    node, far = CHOSEN[1], CHOSEN[-1]
    start = page.centre(node)
    mouse = ActionChains(page.browser, duration=0)
    mouse.move_to_element(page.mark(0)).click_and_hold().move_by_offset(40, 25)
    mouse.move_by_offset(30, 20).release().perform()
    assert page.centre(node) == pytest.approx((start[0] + 70, start[1] + 45), abs=1)
    assert page.ids(".node.selected") == [far]  # a drag selects nothing
    page.keys("0")
    assert page.centre(node) == pytest.approx(start, abs=1)
    # Nor does a button that went up outside drag on.
    right = page.rects("#tree")[0]["width"] / 2
    mouse = ActionChains(page.browser, duration=0)
    mouse.move_to_element_with_offset(page["tree"], right - 2, 0).click_and_hold()
    mouse.move_by_offset(3, 0).release().move_by_offset(-40, 0).move_by_offset(-40, 9).perform()
    assert page.centre(node) == pytest.approx(start, abs=1)
    # What is under the pointer stays there while the wheel turns.
    gap = page.centre(far)[0] - start[0]
    for _ in range(3):
        before, at = page.centre(node), ScrollOrigin.from_element(page.mark(node))
        ActionChains(page.browser, duration=0).scroll_from_origin(at, 0, -400).perform()
        # 1.3: the pointer is on a whole pixel, less than 1 from the centre; that grows by e^0.8
        assert page.centre(node) == pytest.approx(before, abs=1.3)
    assert page.centre(far)[0] - start[0] > 1.5 * gap
    page["fit"].click()
    assert page.centre(node) == pytest.approx(start, abs=1)
    heights = []
    for button in ("zoom-out", "fit", "zoom-in"):
        page[button].click()
        heights.append(abs(page.centre(far)[1] - page.centre(0)[1]))
    assert heights == sorted(set(heights))
    # A node that is walked to comes into view.
    page.keys(*"+" * 10, Keys.HOME)
    assert page.ids(".node.selected") == [0]
    page.keys(*[Keys.ARROW_RIGHT] * (len(CHOSEN) - 1))
    (box,), (pane,) = page.rects(".node.selected .mark"), page.rects("#pane")
    assert page.ids(".node.selected") == [far]
    assert pane["left"] <= box["left"] < box["right"] <= pane["right"]
    assert pane["top"] <= box["top"] < box["bottom"] <= pane["bottom"]


def test_two_fingers_zoom(page):
    page.open(TREE)
    gap = page.centre(CHOSEN[-1])[0] - page.centre(0)[0]
    touches = {"touchStart": (300, 400), "touchMove": (250, 450), "touchEnd": ()}
    for kind, places in touches.items():
        points = [{"x": x, "y": 400, "id": index} for index, x in enumerate(places)]
        touch = {"type": kind, "touchPoints": points}
        page.browser.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
    page.settle()
    assert page.centre(CHOSEN[-1])[0] - page.centre(0)[0] > 1.4 * gap


def test_the_address_keeps_filters_and_selection(page):
    page.open(TREE)
    page["min-visits"].send_keys("2")
    page["min-value"].send_keys("0.9")
    page["finished"].click()
    page["find"].send_keys("a&c=#1")
    page.mark(CHOSEN[1]).click()
    address = f"#visits=2&value=0.9&finished=1&find=a%26c%3D%231&node={CHOSEN[1]}"
    page.wait_for_address(address)
    before = page.ids()
    assert 1 < len(before) < 300
    page.open(TREE, address)
    assert page.ids() == before
    assert page.ids(".node.selected") == [CHOSEN[1]]
    assert page["find"].get_attribute("value") == "a&c=#1"
    assert page["finished"].is_selected()
    assert not page["chosen"].is_selected()
    page.run("location.hash = '#chosen=1&node=0'")  # as who edits the address
    page.settle()
    assert page.ids() == CHOSEN
    assert page.ids(".node.selected") == [0]
    for wrong in ("5", "-1", "length"):
        page.open(small_tree(), f"#node={wrong}&other=1&visits=x")
        assert page.ids(".node.selected") == [3]
        assert page.ids() == [0, 1, 2, 3, 4]
