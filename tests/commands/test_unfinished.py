"""A search of which no path finished: the best reply so far, why, and exit code 3."""

import json
import re

import pytest

from marco_fast.cli import main
from tests.support.models import save_model

QUESTION = "How many times does the letter r occur in strawberry?"
FAST = ["--expansions", "4"]
UNFINISHED = [
    (["--expansions", "1", "--rollout-tokens", "8"], "--expansions 1, its paths cut off by --roll"),
    (["--max-tokens", "20"], "tokens; give more --max-tokens"),
    (["--max-seconds", "0"], "ended after 0.0 s; give more --max-seconds"),
]


@pytest.mark.parametrize("form", ["--quiet", "--json"])
@pytest.mark.parametrize(("options", "says"), UNFINISHED)
def test_without_an_answer_it_prints_the_best_reply_and_says_what_may_help(
    options, says, form, capfd, tmp_path
):
    tree = tmp_path / "tree.json"
    assert main(["solve", QUESTION, form, "--save", str(tree), *options]) == 3
    captured = capfd.readouterr()
    assert re.fullmatch(
        f"marco-fast solve: no path finished: .*{re.escape(says)}.*\n", captured.err
    )
    saved = json.loads(tree.read_text())
    path, node = [], saved["nodes"][saved["answer_node"]]
    while node["parent"] >= 0:
        path.append("".join(node["texts"]))
        node = saved["nodes"][node["parent"]]
    told = json.loads(captured.out) if form == "--json" else captured.out
    assert told == (saved if form == "--json" else "".join(reversed(path)) + "\n")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (
            "--context",
            "paths were cut off by the context of 64 tokens; give more --context, as far",
        ),
        ("--kv-tokens", "paths were cut off by a full KV cache; give more --kv-tokens, or ask for"),
    ],
)
def test_paths_that_are_cut_off_are_told_of(option, says, capfd):
    assert main(["solve", QUESTION, "--quiet", *FAST, option, "64"]) == 3
    assert says in capfd.readouterr().err


def test_a_model_that_does_not_write_the_tags_is_told_of(capfd, tmp_path):
    folder = str(save_model("llama3", tmp_path / "model"))
    assert main(["solve", "q", "--model", folder, "--quiet", "--max-tokens", "5000"]) == 3
    captured = capfd.readouterr()
    assert "ended without <Output>, which this model does not write" in captured.err
    assert captured.out.strip()
