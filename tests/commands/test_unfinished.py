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
    told = json.loads(captured.out) if form == "--json" else captured.out
    assert told == (saved if form == "--json" else "".join(reversed(path)) + "\n")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (
            "--context",
            "paths filled the context of 64 tokens, ",
        ),
        ("--kv-tokens", "the prompt's: give more --kv-tokens or --context, up to 1024"),
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
