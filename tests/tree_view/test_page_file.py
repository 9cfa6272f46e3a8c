"""The page as a file: one file, whole or not at all, in which hostile text stays text."""

import base64
import copy
import hashlib
import json
import math
import os
import stat
from html.parser import HTMLParser
from pathlib import Path

import pytest

from marco_fast.tree_view.page import write_tree_page
from tests.support.saved_trees import HOSTILE, hostile_tree, small_tree


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
