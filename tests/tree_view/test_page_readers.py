"""Hostile text, both colour schemes, narrow windows and screen readers."""

import json
import socket

import pytest
from selenium.webdriver.common.by import By

from tests.support.browser import contrast, luminance
from tests.support.saved_trees import HOSTILE, TREE, hostile_tree, small_tree


def test_hostile_text_is_shown_as_text(page):
    tree = hostile_tree()
    page.open(tree)
    page["find"].send_keys("<img")
    page.hover(page.mark(1))

    def shown(name: str, text: str) -> None:
        # As JSON: half a surrogate pair does not travel by itself.
        query = "return arguments[0].textContent.includes(JSON.parse(arguments[1]))"
        assert page.run(query, page[name], json.dumps(text)), (name, text)

    for name in ("question", "answer", "facts", "options"):
        shown(name, HOSTILE)
    shown("options", json.dumps([HOSTILE]))
    shown("path", f"<Output>{HOSTILE}{HOSTILE}</Output>")
    shown("tip", HOSTILE[:99])
    shown("numbers", f"{HOSTILE}{HOSTILE}")  # the answer, from its opening tag two nodes above
    assert page.run("return document.querySelectorAll('img, i:not([id]), [onload]').length") == 0
    assert page.run("return document.scripts.length") == 2
    assert page.run("return window.hacked ?? null") is None


def test_nothing_is_loaded_and_no_other_script_runs(page):
    page.open(small_tree())
    assert page.run("return performance.getEntriesByType('resource').length") == 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        page.run(
            """
            document.body.append(Object.assign(new Image(), { src: arguments[0] }));
            fetch(arguments[0]).catch(() => window.refused = true);
            const inline = document.createElement("script");
            inline.textContent = "window.hacked = 1";
            document.body.append(inline);
            document.body.setAttribute("onclick", "window.hacked = 1");
            document.body.click();
            document.body.setAttribute("style", "opacity: 0");
            """,
            f"http://127.0.0.1:{server.getsockname()[1]}/",
        )
        with pytest.raises(TimeoutError):
            server.accept()
    assert page.run("return [window.refused, window.hacked ?? null]") == [True, None]
    assert page.styles("body", "opacity") == ["1"]
    blocked = page.browser.get_log("browser")  # what was tried here, one by one
    assert len(blocked) >= 5
    assert all("Content Security Policy" in each["message"] for each in blocked)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(page, scheme):
    page.media(1300, 850, scheme)
    page.open(TREE)
    (ground,) = page.styles("body", "backgroundColor")
    (raised,) = page.styles("aside", "backgroundColor")
    assert (luminance(ground) > 0.5) == (scheme == "light")
    for selector in ("h1", "#answer", "dt", "dd", ".hint", "button:enabled", ".segment", ".forced"):
        for colour in set(page.styles(selector, "color")):
            assert min(contrast(colour, ground), contrast(colour, raised)) >= 4.5, selector
    for colour in set(page.styles(".label", "fill")):
        assert contrast(colour, ground) >= 4.5
    (chosen,) = set(page.styles("#edges .edge.chosen", "stroke"))
    (edge,) = set(page.styles("#edges .edge:not(.chosen)", "stroke"))
    assert contrast(chosen, ground) >= 3
    assert contrast(edge, ground) >= 1.6
    # The text of the least sure token stands out from its colour.
    page.run("document.body.style.background = 'var(--doubt)'")
    (doubt,) = page.styles("body", "backgroundColor")
    (text,) = page.styles("body", "color")
    assert contrast(text, doubt) >= 4.5


def test_a_narrow_window_stacks_tree_and_panel(page):
    page.media(400, 800)
    page.open(TREE)
    assert page.run("return document.documentElement.scrollWidth") <= 400
    assert page.run("return scrollY") == 0  # the end of the text does not pull the page down
    (header,), (tree,), (panel,) = map(page.rects, ("header", "#tree", "aside"))
    assert header["bottom"] <= tree["top"] < tree["bottom"] <= panel["top"]
    assert tree["height"] >= 300
    (legend,) = page.rects("#legend")
    assert max(box["bottom"] for box in page.rects(".mark")) <= legend["top"]
    page.media(1300, 850)
    page.settle()
    (tree,), (panel,) = page.rects("#tree"), page.rects("aside")
    assert panel["left"] >= tree["right"]
    assert page.run("return document.documentElement.scrollHeight") <= 850
    assert max(box["right"] for box in page.rects(".mark")) > 400  # fitted again


def test_every_control_has_a_name(page):
    page.open(small_tree())
    controls = page.browser.find_elements(By.CSS_SELECTOR, "input, button, [tabindex], [role]")
    names = {control.get_attribute("id"): control.accessible_name for control in controls}
    assert names.pop("tip") == ""
    assert all(names.values()), names
    assert names["min-visits"] == "Visits ≥"
    assert names["zoom-in"] == "Zoom in"
    assert names["node-2"] == "node 2: 1 visits, value 0.4000"
    assert len(names) == 20
