"""Confidence, draws and the LM head against float64, on any backend: what their tests share."""

import math

import torch

from marco_fast import ops
from marco_fast.ops import reference
from tests.support.draws import check_draws, keyed, options_of
from tests.support.tolerance import assert_lse_close, assert_scores, entropy_of

__all__ = [
    "as_product",
    "assert_fits",
    "assert_same_bits",
    "bits",
    "check_sampled",
    "check_scores",
    "random_product",
    "some_ids",
]


def check_scores(
    logits: torch.Tensor, token_ids: torch.Tensor, backend: str = "cpu", **options
) -> None:
    """topk_confidence against float64."""
    got = ops.topk_confidence(logits, token_ids, backend=backend, **options)
    want = reference.topk_confidence(logits, token_ids, **options)
    plain = reference.topk_confidence(logits, token_ids, dtype=torch.float32, **options)
    assert_scores(got, want, plain, backend)


def some_ids(logits: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Of each row: the best token, the last one, or any."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, logits.shape[1], (logits.shape[0],), generator=rng)
    ids[::3] = logits[::3].float().nan_to_num(-torch.inf).argmax(-1)
    ids[1::3] = logits.shape[1] - 1
    return ids


def bits(result) -> list[torch.Tensor]:
    return [field.view(torch.int32) for field in result]


def assert_same_bits(a, b) -> None:
    """Two results of one operation, field by field."""
    for name, x, y in zip(a._fields, bits(a), bits(b), strict=True):
        assert torch.equal(x, y), f"{name} differs"


def check_sampled(
    logits, name: str, backend: str = "cpu", seed: int = 0, draw=ops.sample_confidence, **options
) -> None:
    """A draw with the options of this name against brute force, and its scores against float64."""
    keys = keyed(len(logits), seed)
    got = draw(logits, **options_of(name), **keys, backend=backend, **options)
    check_draws(logits, got.token_ids, keys, options_of(name))
    tempered = options.get("score") == "tempered"
    scoring = {
        "top_k": options.get("top_k", 5),
        "temperature": options_of(name)["temperature"] if tempered else 1.0,
        "denominator": options.get("denominator", "top_k"),
    }
    ids = got.token_ids.long()
    want = reference.topk_confidence(logits, ids, **scoring)
    plain = reference.topk_confidence(logits, ids, dtype=torch.float32, **scoring)
    status = want.status & ~8  # a row without a token scores -1, which is no mistake here
    assert_scores(got, want._replace(status=status), plain, backend)
    assert_lse_close(got.entropy, entropy_of(logits, scoring["temperature"]))


def assert_fits(tokens: torch.Tensor, probability: torch.Tensor) -> None:
    """Chi-square of draws against probabilities, cells of 10 or more expected; 5 sigma."""
    counts = torch.bincount(tokens.long(), minlength=len(probability)).double()
    assert counts[probability == 0].sum() == 0, "a token without probability was drawn"
    expected = probability * len(tokens)
    large = expected >= 10
    cells = [(counts[large], expected[large])]
    if expected[~large].sum() >= 10:
        cells.append((counts[~large].sum()[None], expected[~large].sum()[None]))
    statistic = sum(((seen - mean) ** 2 / mean).sum().item() for seen, mean in cells)
    freedom = sum(len(mean) for _, mean in cells) - 1
    assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom) + 5, (statistic, freedom)


def as_product(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden and weight whose product is exactly `logits`, which must be finite for many rows."""
    return torch.eye(len(logits), dtype=logits.dtype), logits.T.contiguous()


def random_product(rows, size, vocab, dtype, seed=0):
    torch.manual_seed(seed)
    hidden = torch.randn(rows, size).to(dtype)
    return hidden, (4 * torch.randn(vocab, size) / size**0.5).to(dtype)
