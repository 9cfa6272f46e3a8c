"""The examples run from top to bottom, small."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(name: str, *arguments: object) -> str:
    """What an example prints; it reaches no network."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *map(str, arguments)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_finetune_uses_the_public_names_alone():
    tree = ast.parse((ROOT / "examples" / "finetune.py").read_text())
    used = [each for each in ast.walk(tree) if isinstance(each, ast.Import | ast.ImportFrom)]
    ours = [ast.unparse(each) for each in used if "marco_fast" in ast.unparse(each)]
    assert ours == ["import marco_fast as mf"]


@pytest.mark.slow  # it trains
def test_finetune(tmp_path):
    pytest.importorskip("trl")
    from marco_fast.engine.engine import Engine

    printed = run("finetune.py", "--questions", 12, "--steps", 2, "--test", 6, "--work", tmp_path)
    kept = int(re.search(r"searched 12 questions: kept (\d+)", printed)[1])
    assert kept == (tmp_path / "data.jsonl").read_bytes().count(b"\n") > 0
    for name in ("before", "after"):
        assert re.search(rf"{name}: \d of 6 right greedily, .*95% interval", printed)
    assert "no difference beyond chance" in printed
    tuned = tmp_path / "nano-marco-tuned"
    source = ROOT / "marco_fast" / "models" / "nano-marco"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tuned / name).read_bytes() == (source / name).read_bytes()
    sizes = [(each / "model.safetensors").stat().st_size for each in (tuned, source)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)  # the tied embedding once, in bfloat16
    with Engine.from_pretrained(source) as before, Engine.from_pretrained(tuned) as after:
        weights = [each.model.lm_head.weight for each in (before, after)]
        assert 0 < (weights[0] - weights[1]).abs().max() < 0.1
