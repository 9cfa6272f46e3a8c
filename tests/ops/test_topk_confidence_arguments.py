"""What topk_confidence and sample_confidence refuse, each with what was expected."""

import pytest
import torch

from marco_fast import ops
from marco_fast.errors import BackendError
from marco_fast.ops import reference
from tests.support.draws import keyed

LOGITS, IDS = torch.zeros(2, 8), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("logits", "ids", "options", "message"),
    [
        (LOGITS.double(), IDS, {}, "expected logits as a tensor of float32"),
        ("logits", IDS, {}, "got str"),
        (LOGITS[0], IDS, {}, r"expected logits \[B, V\], got shape \(8,\)"),
        (LOGITS[:, ::2], IDS, {}, "last dimension is contiguous, got strides"),
        (LOGITS, IDS[:1], {}, r"expected token_ids \[2\], got shape \(1,\)"),
        (LOGITS, IDS.float(), {}, "expected token_ids of torch.int64 or torch.int32"),
        (LOGITS, [0, 0], {}, "expected token_ids as a tensor, got list"),
        (LOGITS, IDS.to("meta"), {}, "expected token_ids on cpu, got meta"),
        (LOGITS, IDS, {"top_k": 0}, "expected 1 <= top_k <= 8"),
        (LOGITS, IDS, {"top_k": 9}, "expected 1 <= top_k <= 8"),
        (LOGITS, IDS, {"top_k": 2.0}, "expected 1 <= top_k <= 8"),
        (LOGITS, IDS, {"temperature": 0.0}, "expected temperature in"),
        (LOGITS, IDS, {"temperature": -1.0}, "expected temperature in"),
        (LOGITS, IDS, {"temperature": torch.nan}, "expected temperature in"),
        (LOGITS, IDS, {"temperature": torch.inf}, "expected temperature in"),
        (LOGITS, IDS, {"temperature": "warm"}, "expected temperature as a number"),
        (LOGITS, IDS, {"denominator": "sum"}, "expected denominator to be"),
        (LOGITS, IDS, {"backend": "gpu"}, "expected backend to be one of"),
        (torch.empty(2, 0), IDS, {}, "expected 1 <= top_k <= 0"),
    ],
)
def test_topk_confidence_refuses(logits, ids, options, message):
    with pytest.raises(ValueError, match=message):
        ops.topk_confidence(logits, ids, **options)


@pytest.mark.parametrize("bad", [-1, 8, 2**40, -(2**40)])
def test_ids_out_of_range(bad):
    with pytest.raises(IndexError, match=r"expected token ids in \[0, 8\), got"):
        ops.topk_confidence(LOGITS, torch.tensor([0, bad]))


def test_reference_flags_ids_out_of_range():
    got = reference.topk_confidence(LOGITS, torch.tensor([-1, 8]))
    assert got.status.tolist() == [8, 8]
    assert got.confidence.tolist() == [0, 0]
    assert got.token_logprobs.tolist() == [-torch.inf, -torch.inf]


def test_a_named_backend_is_not_replaced():
    with pytest.raises((BackendError, ValueError)):
        ops.topk_confidence(LOGITS.to("meta"), IDS.to("meta"), backend="cpu")


KEYS = keyed(2)
FLOATS = torch.tensor([0.5, 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"expected temperature in \[0.0, .*\], got -0.1"),
        ({"temperature": torch.nan}, "expected temperature in"),
        ({"temperature": torch.inf}, "expected temperature in"),
        ({"temperature": FLOATS - 0.7}, "expected temperature in"),
        ({"temperature": FLOATS * torch.nan}, "expected temperature in"),
        ({"temperature": 0.0, "score": "tempered"}, "expected temperature in"),
        ({"temperature": FLOATS - 0.5, "score": "tempered"}, "expected temperature in"),
        ({"temperature": "0.7"}, "expected temperature as a number or a tensor, got str"),
        ({"temperature": True}, "expected temperature as a number or a tensor, got bool"),
        ({"temperature": FLOATS[:1]}, r"expected temperature \[2\], got shape \(1,\)"),
        ({"temperature": FLOATS.int()}, "expected temperature of torch.float64"),
        ({"top_p": 0.0}, "expected top_p in"),
        ({"top_p": 1.5}, "expected top_p in"),
        ({"top_p": FLOATS * 4}, "expected top_p in"),
        ({"min_p": -0.1}, "expected min_p in"),
        ({"min_p": 1.1}, "expected min_p in"),
        ({"sample_top_k": -1}, "expected sample_top_k in"),
        ({"sample_top_k": 1.5}, "expected sample_top_k as an integer"),
        ({"sample_top_k": FLOATS}, "expected sample_top_k of torch.int32 or torch.int64"),
        ({"sample_top_k": torch.tensor([1, 2**33])}, "expected sample_top_k in"),
        ({"seeds": KEYS["seeds"].int()}, "expected seeds of torch.int64, got torch.int32"),
        ({"positions": KEYS["positions"][:1]}, "expected positions"),
        ({"seeds": 3}, "expected seeds as a tensor, got int"),
        ({"top_k": 9}, "expected 1 <= top_k <= 8"),
        ({"score": "sampled"}, "expected score to be 'raw' or 'tempered', got 'sampled'"),
        ({"denominator": "all"}, "expected denominator to be"),
        ({"path_sums": torch.zeros(2)}, "expected path_sums of torch.int64"),
        ({"path_sums": torch.zeros(4, dtype=torch.int64)[::2]}, "expected path_sums contiguous"),
        ({"path_counts": torch.zeros(2, dtype=torch.int64)}, "expected path_counts of torch.int32"),
        ({"active": torch.ones(2)}, "expected active of torch.bool"),
        ({"active": torch.ones(3, dtype=torch.bool)}, r"expected active \[2\]"),
        ({"backend": "numpy"}, "expected backend to be one of"),
    ],
)
def test_sample_confidence_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        ops.sample_confidence(LOGITS, **{**KEYS, **options})


def test_nothing_is_added_to_a_path_on_an_error():
    sums = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="active"):
        ops.sample_confidence(LOGITS, **KEYS, path_sums=sums, active=torch.ones(2))
    assert sums.tolist() == [0, 0]
