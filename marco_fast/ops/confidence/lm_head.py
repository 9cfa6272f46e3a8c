"""lm_head_confidence: check arguments, allocate results, run a backend."""

from typing import Any

import torch

from marco_fast.errors import BackendError
from marco_fast.ops.backends import load_backend
from marco_fast.ops.confidence.options import Head, check_scoring, float_tensor, sampling_arguments
from marco_fast.ops.confidence.sample import SampledTokens, empty_samples
from marco_fast.ops.dtypes import FLOATS
from marco_fast.ops.isolation import isolated
from marco_fast.ops.numbers import described
from marco_fast.ops.quantized import PackedWeight
from marco_fast.ops.tensors import mark_written, tensor_of

__all__ = ["head_arguments", "lm_head_confidence"]


@isolated
def lm_head_confidence(
    hidden: torch.Tensor,
    weight: torch.Tensor | PackedWeight,
    *,
    bias: torch.Tensor | None = None,
    round_logits: torch.dtype | None = None,
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
    """sample_confidence(hidden @ weight.T + bias), the logits never stored.

    Logits are summed in float32. A row's result depends neither on the other rows of the batch nor
    on the number of threads; on a GPU, up to 64 rows: more are a library's product, whose logits
    are stored for a call. Where a draw is not decided by the largest logits, those that can hold
    the token are computed again and stored: 64 of an unfiltered row.

    Args:
        hidden: [B, H] float32, bfloat16 or float16, last dimension contiguous.
        weight: [V, H] of hidden's dtype, last dimension contiguous: an LM head, or tied embeddings.
            On a CPU also a PackedWeight.
        bias: [V] float, contiguous.
        round_logits: a dtype that the logits are rounded to before they are read, as engines do
            that store them in bfloat16 or float16; None or float32: they are not rounded.
        temperature, top_p, min_p, sample_top_k, seeds, positions, top_k, score, denominator,
            path_sums, path_counts, active: as of `sample_confidence`.
        backend: "cpu", "triton" or "torch"; None takes the device's own.

    Returns:
        SampledTokens, as `sample_confidence` returns them.

    Raises:
        ValueError: a dtype, shape, stride or range that is not as above.
        BackendError: the named backend cannot run here.
    """
    head = head_arguments(hidden, weight, bias, round_logits, backend)
    hidden = head.hidden
    top_k = check_scoring(len(head.weight), top_k, denominator)
    sampling = sampling_arguments(
        hidden, temperature, top_p, min_p, sample_top_k, seeds, positions, score,
        denominator, path_sums, path_counts, active,
    )  # fmt: skip
    module = load_backend(backend, hidden.device, "lm_head_confidence")
    result = empty_samples(len(hidden), top_k, hidden.device)
    module.lm_head_confidence(head, sampling, result)
    mark_written(sampling.path_sums, sampling.path_counts)
    return result


def head_arguments(
    hidden: torch.Tensor,
    weight: torch.Tensor | PackedWeight,
    bias: torch.Tensor | None,
    round_logits: torch.dtype | None,
    backend: str | None,
) -> Head:
    """The arguments of a product, checked.

    Raises:
        ValueError: as lm_head_confidence documents.
    """
    hidden, weight = _operands(hidden, weight)
    if isinstance(weight, PackedWeight) and backend == "triton":
        raise BackendError("backend 'triton' cannot multiply by a PackedWeight: it takes tensors")
    if round_logits not in (None, *FLOATS):
        raise ValueError(
            f"expected round_logits to be None, float32, bfloat16 or float16, got {round_logits!r}"
        )
    bias = None if bias is None else _bias(bias, hidden, weight).float()
    return Head(hidden, weight, bias, round_logits or torch.float32)


def _bias(value: Any, hidden: torch.Tensor, weight: torch.Tensor | PackedWeight) -> torch.Tensor:
    expected = f"expected bias [{len(weight)}] float, contiguous, on {hidden.device}"
    try:
        bias = tensor_of("bias", value)
    except ValueError as error:
        raise ValueError(f"{expected}, got {described(value)}") from error
    same = bias.shape == (len(weight),) and bias.device == hidden.device
    if not same or bias.dtype not in FLOATS or not bias.is_contiguous():
        raise ValueError(f"{expected}, got {bias.dtype} {tuple(bias.shape)} on {bias.device}")
    return bias


def _operands(hidden: Any, weight: Any) -> tuple[torch.Tensor, torch.Tensor | PackedWeight]:
    hidden = float_tensor("hidden", hidden)
    if isinstance(weight, PackedWeight):
        alike = hidden.dim() == 2 and hidden.shape[1] == weight.shape[1] and hidden.is_cpu
        if not alike or hidden.stride(1) != 1:
            raise ValueError(
                f"expected hidden [B, {weight.shape[1]}] on a CPU, its last dimension contiguous, "
                f"got {tuple(hidden.shape)} on {hidden.device} with strides {hidden.stride()}"
            )
        return hidden, weight
    weight = float_tensor("weight", weight)
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "expected hidden [B, H] and weight [V, H], got shapes "
            f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if hidden.shape[1] < 1:
        raise ValueError("expected H of at least 1, got 0")
    if hidden.dtype != weight.dtype or hidden.device != weight.device:
        raise ValueError(
            f"expected hidden and weight of one dtype on one device, got {hidden.dtype} on "
            f"{hidden.device} and {weight.dtype} on {weight.device}"
        )
    if hidden.shape[1] > 1 and not hidden.stride(1) == weight.stride(1) == 1:
        raise ValueError(
            "expected hidden and weight whose last dimension is contiguous, got strides "
            f"{hidden.stride()} and {weight.stride()}"
        )
    return hidden, weight
