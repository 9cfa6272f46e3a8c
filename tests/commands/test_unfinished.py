"""A search of which no path finished: the best reply so far, why, and exit code 3."""

import json
import re

import pytest

from marco_fast.cli import main
from tests.support.models import save_model

QUESTION = "How many times does the letter r occur in strawberry?"
FAST = ["--expansions", "4"]
UNFINISHED = [
    (["--expansions", "1", "--rollout-tokens", "8"], "the only path reached --rollout-tokens 8: "),
    (["--max-tokens", "20"], "still ran when --max-tokens 20 were used up: give more"),
    (["--max-seconds", "0"], "nothing was decoded within --max-seconds 0; give more"),
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
    if form == "--json":
        assert json.loads(captured.out) == saved
    else:
        assert captured.out == saved["answer"] + "\n"
    assert (saved["finished"], saved["final"], saved["support"]) == (False, "", 0.0)
    assert saved["answer"] == "".join(reversed(path)).strip()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (
            "--context",
            "filled the context of 64 tokens, ",
        ),
        ("--kv-tokens", "filled the KV cache of 64 tokens: give more --kv-tokens"),
    ],
)
def test_paths_that_are_cut_off_are_told_of(option, says, capfd):
    assert main(["solve", QUESTION, "--quiet", *FAST, option, "64"]) == 3
    assert says in capfd.readouterr().err


def test_a_model_that_writes_no_tags_answers_with_its_whole_reply(capfd, tmp_path):
    folder = str(save_model("llama3", tmp_path / "model"))
    assert main(["solve", "q", "--model", folder, "--quiet", "--max-tokens", "5000"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out.strip()


def test_an_option_that_did_nothing_is_told_of(capfd):
    assert main(["solve", QUESTION, "--quiet", "--reflect", "--context", "64", *FAST]) == 3
    assert "note: --reflect had no effect: no path ended its thought" in capfd.readouterr().err
