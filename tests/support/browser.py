"""The page of a tree in a headless browser, as its reader meets it."""

import re
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from marco_fast.tree_view.page import write_tree_page
from marco_fast.tree_view.read import read_tree
from tests.support.saved_trees import put


class Shown:
    """A page in the browser, as its reader meets it."""

    def __init__(self, browser: webdriver.Chrome, folder: Path) -> None:
        self.browser, self.folder = browser, folder
        self.media(1300, 850)

    def media(self, width: int, height: int, scheme: str = "light") -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})

    def open(self, tree: dict, address: str = "") -> None:
        path = self.folder / "tree.html"
        write_tree_page(read_tree(put(self.folder / "tree.json", tree)), path)
        self.browser.get("about:blank")  # else a change of the hash alone would load nothing
        self.browser.get(path.as_uri() + address)
        self.settle()

    def settle(self) -> None:
        """Two frames later what was done before is handled and on the screen."""
        frames = "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
        self.browser.execute_async_script(frames)

    def run(self, script: str, *arguments: object):
        return self.browser.execute_script(script, *arguments)

    def of_all(self, selector: str, script: str) -> list:
        """What an expression in `e` gives for all elements, in the document's order."""
        query = f"return [...document.querySelectorAll(arguments[0])].map(e => {script})"
        return self.run(query, selector)

    def ids(self, selector: str = ".node") -> list[int]:
        return sorted(self.of_all(selector, "+e.dataset.node"))

    def rects(self, selector: str) -> list[dict]:
        return self.of_all(selector, "e.getBoundingClientRect().toJSON()")

    def styles(self, selector: str, name: str) -> list[str]:
        return self.of_all(selector, f"getComputedStyle(e).{name}")

    def __getitem__(self, name: str) -> WebElement:
        return self.browser.find_element(By.ID, name)

    def mark(self, node: int) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, f"#node-{node} .mark")

    def centre(self, node: int) -> tuple[float, float]:
        (box,) = self.rects(f"#node-{node} .mark")
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def keys(self, *keys: str) -> None:
        ActionChains(self.browser, duration=0).send_keys(*keys).perform()
        self.settle()

    def hover(self, element: WebElement) -> None:
        box = self.run("return arguments[0].getClientRects()[0].toJSON()", element)
        actions = ActionChains(self.browser, duration=0)
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        actions.w3c_actions.pointer_action.move_to_location(*map(round, middle))
        actions.perform()
        self.settle()

    def wait_for_address(self, end: str) -> None:
        """The address ends so, a moment after what changed it."""
        deadline = time.monotonic() + 3
        while not (now := self.browser.current_url).endswith(end):
            assert time.monotonic() < deadline, now
            time.sleep(0.02)


def luminance(colour: str) -> float:
    """WCAG's relative luminance of "rgb(…)" or "color(srgb …)"."""
    parts = [float(each) for each in re.findall(r"\d*\.?\d+(?:e-?\d+)?", colour)]
    scaled = parts[:3] if colour.startswith("color") else [each / 255 for each in parts[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in scaled]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
