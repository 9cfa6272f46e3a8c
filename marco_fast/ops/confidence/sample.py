"""topk_confidence and sample_confidence: check arguments, allocate results, run a backend."""

from typing import Any

import torch

from marco_fast.ops.backends import load_backend
from marco_fast.ops.confidence.options import (
    LARGEST,
    SMALLEST,
    Scoring,
    check_scoring,
    float_tensor,
    row_tensor,
    sampling_arguments,
)
from marco_fast.ops.isolation import isolated
from marco_fast.ops.numbers import real
from marco_fast.ops.reference.confidence import SampledTokens, TopKConfidence
from marco_fast.ops.tensors import mark_written

__all__ = [
    "SampledTokens",
    "TopKConfidence",
    "empty_samples",
    "sample_confidence",
    "topk_confidence",
]

_FLOAT32, _INT32, _INDEXES = torch.float32, torch.int32, (torch.int64, torch.int32)
_empty = torch.empty


def _logits_of(value: Any) -> torch.Tensor:
    """The argument `logits`, checked."""
    logits = float_tensor("logits", value)
    if logits.dim() != 2:
        raise ValueError(f"expected logits [B, V], got shape {tuple(logits.shape)}")
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        raise ValueError(
            f"expected logits whose last dimension is contiguous, got strides {logits.stride()}"
        )
    return logits


def _empty_scores(rows: int, top_k: int, device: torch.device) -> TopKConfidence:
    # Global names, not torch.float32 and the like: between other work of a decode step each lookup
    # in a cold module dictionary costs a microsecond.
    return TopKConfidence(
        _empty(rows, dtype=_FLOAT32, device=device),
        _empty(rows, dtype=_FLOAT32, device=device),
        _empty(rows, dtype=_FLOAT32, device=device),
        _empty((rows, top_k), dtype=_FLOAT32, device=device),
        _empty((rows, top_k), dtype=_INT32, device=device),
        _empty(rows, dtype=_INT32, device=device),
    )


def empty_samples(rows: int, top_k: int, device: torch.device) -> SampledTokens:
    """What a backend fills."""
    return SampledTokens(
        _empty(rows, dtype=_INT32, device=device),
        *_empty_scores(rows, top_k, device),
        _empty(rows, dtype=_FLOAT32, device=device),
    )


@isolated
def topk_confidence(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    top_k: int = 5,
    temperature: float = 1.0,
    denominator: str = "top_k",
    backend: str | None = None,
) -> TopKConfidence:
    """The confidence of each row's token: exp(z_t / T) / sum of exp(z_k / T) over the k largest.

    NaN logits are read as -inf; m logits of +inf share the probability (1 / m each).

    Args:
        logits: [B, V] float32, bfloat16 or float16; last dimension contiguous, any row stride.
        token_ids: [B] int32 or int64, in [0, V).
        top_k: how many of the largest are summed and returned; 1 to V.
        temperature: T > 0, finite.
        denominator: "top_k", or "union" to add the token itself where its logit is below the k-th.
        backend: "cpu", "triton" or "torch"; None takes the device's own.

    Returns:
        TopKConfidence; the k largest are ordered by logit descending, then id ascending. Fewer than
        top_k logits above -inf: id -1, logprob -inf. None: confidence 0, lse -inf, status bit 4.

    Raises:
        ValueError: a dtype, shape, stride or range that is not as above.
        IndexError: a token id outside [0, V) on a CPU (elsewhere status bit 8).
        BackendError: the named backend cannot run here.
    """
    logits = _logits_of(logits)
    top_k = check_scoring(logits.shape[1], top_k, denominator)
    token_ids = row_tensor("token_ids", token_ids, logits, _INDEXES)
    number = real(temperature)
    if number is None:
        raise ValueError(f"expected temperature as a number, got {type(temperature).__name__}")
    if not SMALLEST <= number <= LARGEST:
        raise ValueError(f"expected temperature in [{SMALLEST}, {LARGEST}], got {number}")
    rows, vocab_size = logits.shape
    device = logits.device
    if logits.is_cpu and rows > 0:
        ids = token_ids.tolist()
        if min(ids) < 0 or max(ids) >= vocab_size:
            got = f"{min(ids)} to {max(ids)}"
            raise IndexError(f"expected token ids in [0, {vocab_size}), got {got}")
    module = load_backend(backend, device, "topk_confidence")
    result = _empty_scores(rows, top_k, device)
    scoring = Scoring(float(number), denominator == "union")
    module.topk_confidence(logits, token_ids.contiguous(), scoring, result)
    return result


@isolated
def sample_confidence(
    logits: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    top_p: float | torch.Tensor = 1.0,
    min_p: float | torch.Tensor = 0.0,
    sample_top_k: int | torch.Tensor = 0,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    top_k: int = 5,
    score: str = "raw",
    denominator: str = "top_k",
    path_sums: torch.Tensor | None = None,
    path_counts: torch.Tensor | None = None,
    active: torch.Tensor | None = None,
    backend: str | None = None,
) -> SampledTokens:
    """Draws a token of each row and scores it, in one pass over the logits.

    The token is drawn from softmax(logits / temperature), cut to the sample_top_k largest, to the
    shortest prefix (by logit, then id) whose mass reaches top_p of the whole, and to probabilities
    of at least min_p times the largest; what is left is renormalised once. The draw depends on
    (seed, position, logits) and the row's own options alone.

    top_p is a share of the whole vocabulary's mass, where transformers and vLLM take it of what
    sample_top_k has left: of probabilities .3 .2 .1 .1 and ten times .03, sample_top_k=2 with
    top_p=.55 keeps two tokens here and one there.

    Args:
        logits: [B, V] float32, bfloat16 or float16; last dimension contiguous, any row stride.
        temperature: >= 0, a number or float [B]; below 1e-5 the largest logit wins, the smaller id
            among equals.
        top_p: in (0, 1], a number or float [B]; 1: off.
        min_p: in [0, 1], a number or float [B]; 0: off.
        sample_top_k: >= 0, a number or int [B]; 0: off.
        seeds, positions: [B] int64, any value.
        top_k: how many of the largest the confidence sums; 1 to V.
        score: "raw" scores softmax(logits), "tempered" softmax(logits / temperature), which needs
            temperature > 0.
        denominator: "top_k", or "union" to add the token itself where its logit is below the k-th.
        path_sums: [B] int64, contiguous: the confidence in units of 2^-40 is added in place.
        path_counts: [B] int32, contiguous: 1 is added in place.
        active: [B] bool: which rows add to their path; None: all.
        backend: "cpu", "triton" or "torch"; None takes the device's own.

    Returns:
        SampledTokens; confidence, logprobs, lse and entropy describe the scored distribution. A row
        without a logit above -inf gives token -1, confidence 0, entropy 0, status bit 4.

    Raises:
        ValueError: a dtype, shape, stride or range that is not as above.
        BackendError: the named backend cannot run here.
    """
    logits = _logits_of(logits)
    top_k = check_scoring(logits.shape[1], top_k, denominator)
    sampling = sampling_arguments(
        logits, temperature, top_p, min_p, sample_top_k, seeds, positions, score,
        denominator, path_sums, path_counts, active,
    )  # fmt: skip
    module = load_backend(backend, logits.device, "sample_confidence")
    result = empty_samples(logits.shape[0], top_k, logits.device)
    module.sample_confidence(logits, sampling, result)
    mark_written(sampling.path_sums, sampling.path_counts)
    return result
