"""Drift: an engine's logprobs of a text, and how far two models are apart."""

import math
from pathlib import Path

import pytest
import torch

from bench.engines import drift
from bench.engines.texts import TEXTS
from bench.report.real import drift_table
from marco_fast import Engine
from tests.support.models import PlainForward, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_model("llama3", tmp_path_factory.mktemp("drift"))


def test_the_logprobs_are_those_of_a_plain_forward_and_no_page_is_kept(folder):
    ids = [5, 9, 30, 7, 11] * 9
    with Engine.from_pretrained(folder, kv_tokens=128) as engine:
        found = drift.logprobs(engine, ids)
        assert engine.cache.used_pages == 0
    assert torch.allclose(found, PlainForward(folder).logprobs(ids).float(), atol=1e-4)


def test_the_figures_are_of_known_distributions():
    right = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.5, 0.5]]).log()
    other = torch.tensor([[0.75, 0.25], [0.9, 0.1], [0.5, 0.5]]).log()
    found = drift.compared(right, other, [0, 1, 0])
    assert found["kl"] == pytest.approx((0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2)) / 3)
    assert found["largest"] == pytest.approx(math.log(2))
    assert (found["same"], found["tokens"]) == (1.0, 3)
    assert drift.compared(right, right, [0, 1, 0])["kl"] == 0.0
    assert drift.compared(right, other.flip(-1), [0, 1, 0])["same"] == pytest.approx(1 / 3)


def test_a_token_without_probability_changes_no_mean():
    right = torch.tensor([[0.0, -math.inf], [0.0, -math.inf]])
    assert drift.compared(right, right, [0, 0])["kl"] == 0.0


def test_the_command_measures_both_texts_and_keeps_earlier_rows(folder, tmp_path, capsys):
    out = tmp_path / "drift.json"
    assert drift.main([str(folder), "float32", "--out", str(out)]) == 0
    assert drift.main([str(folder), "bfloat16", "nonsense", "--out", str(out)]) == 0
    assert "nonsense: left out" in capsys.readouterr().out
    rows = drift.json.loads(out.read_text())["rows"]
    assert [row["weights"] for row in rows] == ["float32", "bfloat16"]
    for text in TEXTS:
        assert rows[0][text]["kl"] == 0.0
        assert 0 < rows[1][text]["kl"] < 0.1
    table = drift_table({"rows": rows}).split("\n")
    assert table[2].endswith("float32 | 0 | 0 | 100.0% | 0 | 0 | 100.0% |")
