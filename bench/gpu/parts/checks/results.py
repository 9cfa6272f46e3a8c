"""Results against the reference in float64, and against other results bit for bit."""

import torch

import marco_fast as mf
from bench.gpu.machine import Machine
from tests.support.tolerance import assert_scores


def on_cpu(result: tuple) -> tuple:
    """A NamedTuple of results, copied to the CPU."""
    return type(result)(*(field.cpu() for field in result))


def scores_of(drawn: mf.SampledTokens) -> mf.TopKConfidence:
    """What topk_confidence says of the tokens that were drawn."""
    return mf.TopKConfidence(*(getattr(drawn, name) for name in mf.TopKConfidence._fields))


def assert_scored(got: tuple, logits: torch.Tensor, ids: torch.Tensor, **options: object) -> None:
    """`got` against float64, computed on the device."""
    want = mf.reference.topk_confidence(logits, ids, **options)
    baseline = mf.reference.topk_confidence(logits, ids, dtype=torch.float32, **options)
    # A row without a token scores -1, which is no mistake where the operation drew it.
    status = want.status & ~8
    assert_scores(on_cpu(got), on_cpu(want._replace(status=status)), on_cpu(baseline), "torch")


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal down to the sign of zero; NaN equals itself."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.view(whole), b.view(whole))


def assert_same(machine: Machine, part: tuple, whole: tuple, rows: slice) -> None:
    """The results of some rows are those that the whole batch gives them, bit for bit."""
    for got, want in zip(part, whole, strict=True):
        if not machine.recording:
            assert same_bits(got, want[rows]), f"rows {rows.start} to {rows.stop} differ in a batch"
