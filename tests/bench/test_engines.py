"""The search schedule and the peers that run in this environment: they do the same work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.engines.schedule import make_schedule
from tests.support.models import PlainForward, save_model

ROOT = Path(__file__).parents[2]
PEERS = ["ours", "transformers", "generate"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model("qwen2", tmp_path_factory.mktemp("peers"))


def start(name: str, folder: Path, schedule: dict, tmp_path: Path, lines: str) -> list[dict]:
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps(schedule))
    command = [
        sys.executable, str(ROOT / "bench/engines/peers" / f"{name}.py"), "--model", str(folder),
        "--precision", "float32", "--threads", "1", "--schedule", str(file),
    ]  # fmt: skip
    run = subprocess.run(
        command,
        input=lines,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(ROOT)},
    )
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_a_schedule_is_a_search():
    options = {"branches": 8, "rounds": 5, "tokens": 32}
    schedule = make_schedule([1, 2, 3], **options, seed=1)
    assert schedule == make_schedule([1, 2, 3], **options, seed=1)
    assert schedule != make_schedule([1, 2, 3], **options, seed=2)
    depth = {0: 0}
    for number, expansions in enumerate(schedule["rounds"]):
        assert len(expansions) == 8
        parents = [each["parent"] for each in expansions]
        assert len(set(parents)) == (1 if number == 0 else 2)
        assert set(parents) <= set(depth)
        depth |= {each["node"]: depth[each["parent"]] + 1 for each in expansions}
    assert len(depth) == 41
    assert max(depth.values()) >= 3


def test_the_peers_do_the_same_work(folder, tmp_path):
    """With one token left to draw from, every engine decodes the same tree."""
    schedule = make_schedule([5, 9, 30, 7], branches=4, rounds=2, tokens=6, top_p=1e-6)
    argmax = int(PlainForward(folder).logprobs([5, 9, 30, 7])[-1].argmax())
    answers = {name: start(name, folder, schedule, tmp_path, "run\nrun\n") for name in PEERS}
    for name, (ready, *runs) in answers.items():
        assert (ready["argmax"], ready["top_k"], ready["threads"]) == (argmax, True, 1), name
        assert len(runs) == 2, name
        for run in runs:
            assert (run["expansions"], run["tokens"]) == (8, 48), name
            want = answers["ours"][1]["mean_confidence"]
            assert run["mean_confidence"] == pytest.approx(want, abs=1e-5), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": [[{"node": 2, "parent": 1, "tokens": 4}]]}, "expected a known parent"),
        ({"rounds": [[{"node": 1, "parent": 0, "tokens": 0}]]}, "at least 1 token"),
        ({"prompt": [10**9]}, "Error"),
    ],
)
def test_an_error_is_one_line(folder, tmp_path, change, message):
    schedule = {**make_schedule([5, 9], branches=2, rounds=1, tokens=2), **change}
    (answer,) = start("ours", folder, schedule, tmp_path, "run\n")
    assert message in answer["error"]


def test_an_empty_schedule_is_refused():
    with pytest.raises(ValueError, match="expected a prompt, branches, rounds and tokens"):
        make_schedule([], branches=1, rounds=1, tokens=1)
