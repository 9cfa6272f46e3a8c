"""The page of a search tree: what tree.json must be, what the file is, and what a browser shows."""

import base64
import copy
import hashlib
import itertools
import json
import math
import os
import random
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from marco_fast.tree_view.page import write_tree_page
from marco_fast.tree_view.read import read_tree

WORDS = " so| the| letter| r| occurs|.| three| times| wait|\n\n| check| café|\n".split("|")
OUTPUT = ["</Thought>", "\n<Output>\n", "3", "\n</Output>"]


def as_tree(nodes: list[dict], **changed: object) -> dict:
    return {
        "format": "marco-fast-tree",
        "version": 1,
        "model": "nano-marco",
        "question": "How many times does the letter r occur in strawberry?",
        "prompt_token_ids": [1, 2],
        "config": {"action": "mini-step", "c_uct": 1.414, "max_tokens": None, "seed": 2**62 + 1},
        "seed": 2**62 + 1,
        "nodes": nodes,
        "answer_node": 0,
        "answer": "3",
        "thought": "so",
        "confidence": 0.91234567,
        "stop_reason": "expansions",
        "stats": {"expansions": 12345, "expansions_per_second": 17.26, "tokens": 640},
    } | changed


def small_tree(**changed: object) -> dict:
    """Two thoughts below the root, the first with two ends of which one answers."""
    rows = [
        # parent, visits, value, terminal, (text, id, confidence, logprob) ...
        (-1, 4, 0.7, False),
        (0, 3, 0.8, False, ("straw", 7, 1.0, 0.0), ("ber", 8, 0.5, math.log(0.25))),
        (0, 1, 0.4, False, ("none", 9, 0.9, -0.1)),
        (1, 1, 0.9, True, ("ry", 10, 0.2, -2.0), ("", 11, 0.7, -0.5), ("é", 12, 0.95, -0.1)),
        (1, 1, 0.7, True, ("Wait!\n", 13, None, None), ("<b>", 14, 0.6, -1.0)),
    ]
    nodes = [
        {
            "id": index,
            "parent": parent,
            "texts": [token[0] for token in tokens],
            "token_ids": [token[1] for token in tokens],
            "confidences": [token[2] for token in tokens],
            "logprobs": [token[3] for token in tokens],
            "visits": visits,
            "value": value,
            "path_confidence": 0.5,
            "terminal": terminal,
        }
        for index, (parent, visits, value, terminal, *tokens) in enumerate(rows)
    ]
    return as_tree(nodes, **{"answer_node": 3} | changed)


def searched_tree(size: int, seed: int = 1) -> dict:
    """A tree as a search leaves it: forks of up to four, and chains that rollouts left."""
    rng = random.Random(seed)
    parent, children, terminal = [-1], [[]], [False]
    while len(parent) < size:
        node = 0
        while len(children[node]) == 4:
            below = [child for child in children[node] if not terminal[child]] or children[0]
            node = rng.choice(below)
        if terminal[node]:
            continue
        length = rng.choice([1, 2, 3, 8])
        for step in range(min(length, size - len(parent))):
            children[node].append(len(parent))
            parent.append(node)
            children.append([])
            terminal.append(step == length - 1)
            node = len(parent) - 1
    nodes = []
    for index, above in enumerate(parent):
        texts = [rng.choice(WORDS) for _ in range(12)] if index else []
        texts += OUTPUT if terminal[index] else []
        confidences: list[float | None] = [min(1.0, rng.betavariate(8, 0.6)) for _ in texts]
        if index % 9 == 1:
            confidences[:2] = None, None
        node = {"id": index, "parent": above, "visits": 0, "value": 0.0, "path_confidence": 0.9}
        node |= {"texts": texts, "token_ids": [rng.randrange(1000) for _ in texts]}
        node |= {"confidences": confidences, "terminal": terminal[index]}
        node["logprobs"] = [c if c is None else math.log(c) - 0.01 for c in confidences]
        nodes.append(node)
    for leaf in (index for index in range(size) if not children[index]):
        value = rng.betavariate(30, 2)
        for node in path_to(nodes, leaf):
            nodes[node]["visits"] += 1
            nodes[node]["value"] += (value - nodes[node]["value"]) / nodes[node]["visits"]
    ends = [index for index in range(size) if terminal[index]]
    return as_tree(nodes, answer_node=max(ends, key=lambda end: nodes[end]["value"]))


def path_to(nodes: list[dict], node: int) -> list[int]:
    path = []
    while node >= 0:
        path.append(node)
        node = nodes[node]["parent"]
    return path[::-1]


def kept(nodes: list[dict], passes: Callable[[dict], bool]) -> set[int]:
    """The nodes that pass, and all that stands above them."""
    passing = (node["id"] for node in nodes if passes(node))
    return {0}.union(*(path_to(nodes, node) for node in passing))


def put(path: Path, what: object) -> Path:
    path.write_text(what if isinstance(what, str) else json.dumps(what))
    return path


# Reading.


def test_a_tree_is_read_as_it_was_saved(tmp_path):
    tree = small_tree()
    assert read_tree(put(tmp_path / "tree.json", tree)) == tree
    for node in tree["nodes"]:
        del node["texts"]
    assert read_tree(str(put(tmp_path / "tree.json", tree))) == tree


def changed(path: str, value: object) -> dict:
    """The small tree with one value replaced, or left out."""
    tree: dict = small_tree()
    *way, last = (int(key) if key.isdigit() else key for key in path.split("."))
    place = tree
    for key in way:
        place = place[key]
    place[last] = value
    if value is LEFT_OUT:
        del place[last]
    return tree


LEFT_OUT = object()
NUMBERS = (True, "1", None, [], {})
NO_TEXT = (1, None, [], {})
WRONG: dict[str, tuple] = {
    "format": ("marco-fast", None, LEFT_OUT),
    "version": (2, "1", True, None, LEFT_OUT),
    "model": (*NO_TEXT, LEFT_OUT),
    "question": (*NO_TEXT, LEFT_OUT),
    "prompt_token_ids": ([1.5], [None], "12", None, LEFT_OUT),
    "config": ([], None, "{}", LEFT_OUT),
    "seed": (0.5, *NUMBERS, LEFT_OUT),
    "nodes": ([], {}, None, "", [None], [[]], LEFT_OUT),
    "answer_node": (-1, 5, 1.0, *NUMBERS, LEFT_OUT),
    "answer": (*NO_TEXT, LEFT_OUT),
    "thought": (*NO_TEXT, LEFT_OUT),
    "confidence": (10**30, *NUMBERS, LEFT_OUT),
    "stop_reason": (*NO_TEXT, LEFT_OUT),
    "stats": ([], None, {"tokens": "1"}, {"tokens": None}, LEFT_OUT),
    "nodes.1.id": (0, 2, -1, 1.0, *NUMBERS, LEFT_OUT),
    "nodes.0.parent": (0, 1, -2, LEFT_OUT),
    "nodes.2.parent": (2, 3, -1, 0.0, *NUMBERS, LEFT_OUT),
    "nodes.1.token_ids": ([7], [7, 8, 9], [7, None], [7, 0.5], [True, 8], "78", None, LEFT_OUT),
    "nodes.1.logprobs": ([0.0], [0.0, "x"], [0.0, True], {}, None, LEFT_OUT),
    "nodes.1.confidences": ([1.0], [1.0, 0.5, 0.5], [1.0, [0.5]], None, LEFT_OUT),
    "nodes.1.texts": (["strawber"], ["straw", None], "st", None),
    "nodes.1.visits": (-1, 1.0, *NUMBERS, LEFT_OUT),
    "nodes.1.value": NUMBERS,
    "nodes.1.path_confidence": (*NUMBERS, LEFT_OUT),
    "nodes.1.terminal": (0, 1, "false", None, LEFT_OUT),
}


@pytest.mark.parametrize("path", WRONG)
def test_a_malformed_tree_is_named_with_its_file_and_field(path, tmp_path):
    file = tmp_path / "saved.json"
    for value in WRONG[path]:
        put(file, changed(path, value))
        with pytest.raises(ValueError, match=r"^expected .*, got .+") as error:
            read_tree(file)
        message = str(error.value)
        assert str(file) in message
        assert "\n" not in message
        field = re.sub(r"nodes\.(\d)", r"nodes[\1]", path)
        node = field.rpartition(".")[0]  # of lists of different lengths no one is the wrong one
        named = re.match(rf"expected {re.escape(field)}(?!\w)", message)
        assert named or (node and f"in {node} of" in message), message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "JSON in FILE, got Expecting value.*"),
        ("{", "JSON in FILE, got Expecting property name.*"),
        ('{"confidence": NaN}', "JSON in FILE, got the number NaN"),
        ('{"confidence": -Infinity}', "JSON in FILE, got the number -Infinity"),
        ("[" * 100_000, "JSON in FILE, got .*recursion.*"),
        ("[]", r"an object in FILE, got \[\]"),
        ('"tree"', 'an object in FILE, got "tree"'),
        (json.dumps(["x" * 10_000]), r'an object in FILE, got \["x{50,60}\.\.\.'),
        (
            json.dumps(small_tree()).replace("0.91234567", "1e999"),
            "confidence in FILE to be a finite number, got Infinity",
        ),
    ],
    ids=lambda each: each[:20],
)
def test_other_texts_are_refused(text, told, tmp_path):
    file = put(tmp_path / "saved.json", text)
    with pytest.raises(ValueError, match="expected") as error:
        read_tree(file)
    assert re.fullmatch("expected " + told.replace("FILE", repr(str(file))), str(error.value))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "saved.json").write_bytes(b'"\xff\xfe\xfd"')
    with pytest.raises(ValueError, match=r"^expected JSON in .*saved\.json', got "):
        read_tree(tmp_path / "saved.json")


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_tree(tmp_path / "saved.json")


# The file.


class Page(HTMLParser):
    """Tags with their attributes, and the text of every element by its tag."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.inside = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.inside = dict(attributes).get("type") or tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        self.texts[self.inside] = self.texts.get(self.inside, "") + data


HOSTILE = (
    "</script><script>window.hacked = 1</script><!--<script><img src=x onerror='window.hacked=1'>"
    '<svg onload="window.hacked=1">\u2028\u2029&lt;b&gt; {{ 7 * 7 }} {% raw %} \\u003c'
    " \ud800 \0 \U0001f353"
)


def hostile_tree() -> dict:
    tree = small_tree(question=HOSTILE, answer=HOSTILE, model=HOSTILE, stop_reason=HOSTILE)
    tree["config"] = {HOSTILE: HOSTILE, "list": [HOSTILE]}
    tree["nodes"][1]["texts"] = ["<Output>", HOSTILE]
    tree["nodes"][3]["texts"] = [HOSTILE, "", "</Output>"]
    return tree


def test_hostile_text_adds_no_tag_and_arrives_whole(tmp_path):
    write_tree_page(small_tree(), tmp_path / "benign.html")
    write_tree_page(hostile_tree(), tmp_path / "hostile.html")
    benign, hostile = Page(tmp_path / "benign.html"), Page(tmp_path / "hostile.html")
    assert hostile.tags == benign.tags
    assert [tag for tag, _ in hostile.tags].count("script") == 2
    text = hostile.texts["application/json"]
    assert not set("<>&\u2028\u2029") & set(text)
    assert text.isascii()
    data = json.loads(text)
    assert data["question"] == data["answer"] == HOSTILE
    assert data["nodes"][3]["texts"][0] == HOSTILE
    # Only what is between the data's tags differs.
    pages = [(tmp_path / f"{name}.html").read_text() for name in ("benign", "hostile")]
    assert pages[0].replace(benign.texts["application/json"], "") == pages[1].replace(text, "")


def test_the_page_is_one_file_under_a_strict_policy(tmp_path):
    write_tree_page(small_tree(), tmp_path / "tree.html")
    page = Page(tmp_path / "tree.html")
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "img")
        used = {name for name in attributes if name.startswith("on")} | {"src", "href", "style"}
        assert not used & set(attributes), (tag, attributes)
    assert "url(" not in page.texts["style"]
    assert "@import" not in page.texts["style"]
    policy = next(
        attributes["content"]
        for tag, attributes in page.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    parts = dict(part.split(maxsplit=1) for part in policy.split(";"))
    hashes = {}
    for kind in ("script", "style"):
        digest = hashlib.sha256(page.texts[kind].encode()).digest()
        hashes[f"{kind}-src"] = f"'sha256-{base64.b64encode(digest).decode()}'"
    nothing = dict.fromkeys(("default-src", "base-uri", "form-action"), "'none'")
    assert parts == nothing | hashes


def test_no_markup_is_ever_made_of_a_text():
    folder = Path(write_tree_page.__code__.co_filename).parent
    files = [folder / "page.html.j2", *folder.glob("*.js")]
    assert len(files) == 4
    text = "".join(file.read_text() for file in files)
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "safe"):
        assert word not in text


def test_the_same_tree_gives_the_same_bytes(tmp_path):
    tree = small_tree()
    before = copy.deepcopy(tree)
    write_tree_page(tree, tmp_path / "a.html")
    write_tree_page(tree, str(tmp_path / "b.html"))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert tree == before


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "tree.html"
    target.write_text("older")
    endless = small_tree(confidence=math.nan)
    endless["nodes"][1]["value"] = math.nan
    with pytest.raises(ValueError, match="JSON compliant"):
        write_tree_page(endless, target)

    def refuse(*names):
        raise PermissionError(names)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        with pytest.raises(PermissionError):
            write_tree_page(small_tree(), target)
    assert [path.name for path in tmp_path.iterdir()] == ["tree.html"]
    assert target.read_text() == "older"
    with pytest.raises(FileNotFoundError):
        write_tree_page(small_tree(), tmp_path / "nowhere" / "tree.html")


def test_a_page_has_the_permissions_of_any_new_file(tmp_path):
    umask = os.umask(0o027)
    try:
        write_tree_page(small_tree(), tmp_path / "tree.html")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "tree.html").stat().st_mode) == 0o640


# The browser.


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    """One headless browser for all tests here."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        missing = "Chromium" if binary is None else "chromedriver"
        told = f"{missing} is not installed: nothing to show the page in"
        pytest.fail(told) if os.environ.get("CI") else pytest.skip(told)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for switch in (
        "headless=new no-sandbox disable-gpu disable-dev-shm-usage "
        "disable-background-networking no-first-run"
    ).split():
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    yield browser
    browser.quit()


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


@pytest.fixture
def page(chromium, tmp_path) -> Iterator[Shown]:
    yield Shown(chromium, tmp_path)
    assert chromium.get_log("browser") == []


LARGE, TREE = searched_tree(2000), searched_tree(300)
NODES, CHOSEN = TREE["nodes"], path_to(TREE["nodes"], TREE["answer_node"])
EVERY = list(range(300))


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


PARTS = (":not(.chosen)", ".chosen")
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


def luminance(colour: str) -> float:
    """WCAG's relative luminance of "rgb(…)" or "color(srgb …)"."""
    parts = [float(each) for each in re.findall(r"\d*\.?\d+(?:e-?\d+)?", colour)]
    scaled = parts[:3] if colour.startswith("color") else [each / 255 for each in parts[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in scaled]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


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
    assert page["tip"].text == "node 3: 1 visits, value 0.9000, finished\nryé"
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
    tree["nodes"][3]["texts"] = ["<Output>", "4", "2</Output>"]
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
        "confidence": "0.91235",
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
    page.open(small_tree(answer="", stats={}))
    assert page["answer"].text == "No path reached an answer"
    assert "expansions/s" not in page["facts"].text


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
        at = ScrollOrigin.from_element(page.mark(node))
        ActionChains(page.browser, duration=0).scroll_from_origin(at, 0, -400).perform()
        assert page.centre(node) == pytest.approx(start, abs=2)
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


def test_odd_trees_are_shown_too(page):
    root = {**small_tree()["nodes"][0], "visits": 0, "value": 0.0}
    page.open(as_tree([root], answer="", stats={}, config={}))
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
