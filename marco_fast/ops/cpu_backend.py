"""The backend "cpu": the C++ kernels, which take the tensors' addresses, sizes and strides.

The operations have checked dtypes, shapes and strides. At a few rows a call takes some tens of
microseconds, so nothing here makes a view or a copy of a tensor.
"""

import torch

from marco_fast import _C
from marco_fast.ops.attention.attend import (
    AttentionInputs,
    AttentionOptions,
    AttentionResult,
    Caches,
    NewTokens,
)
from marco_fast.ops.confidence.options import Head, Sampling, Scoring
from marco_fast.ops.dtypes import DTYPE_CODES, cpp_view
from marco_fast.ops.quantized import PackedWeight
from marco_fast.ops.reference.confidence import LMHeadRecords, SampledTokens, TopKConfidence

__all__ = [
    "append_kv",
    "lm_head_confidence",
    "lm_head_records",
    "sample_confidence",
    "topk_confidence",
    "tree_attention",
]

_INT64 = torch.int64
_TENSORS = Sampling._fields.index("tempered")  # all fields before it are tensors
_threads = torch.get_num_threads


def append_kv(inputs: NewTokens, caches: Caches) -> None:
    (k, v, slot_mapping), (k_cache, v_cache) = inputs, caches
    _C.append_kv(
        cpp_view(k), cpp_view(v), cpp_view(k_cache), cpp_view(v_cache), slot_mapping.data_ptr(),
        k.itemsize, _threads(),
    )  # fmt: skip


def tree_attention(
    inputs: AttentionInputs, options: AttentionOptions, result: AttentionResult
) -> None:
    q, k_cache, v_cache, plan = inputs
    (scale, workspace), (out, lse) = options, result
    assert lse is not None
    _C.tree_attention(
        cpp_view(q), cpp_view(k_cache), cpp_view(v_cache), plan.arrays, scale,
        cpp_view(out), cpp_view(lse), cpp_view(workspace), plan.num_queries,
        DTYPE_CODES[q.dtype], _threads(),
    )  # fmt: skip


def topk_confidence(
    logits: torch.Tensor, token_ids: torch.Tensor, scoring: Scoring, out: TopKConfidence
) -> None:
    _C.topk_confidence(
        cpp_view(logits), DTYPE_CODES[logits.dtype], out.topk_ids.shape[1], scoring.include_token,
        scoring.temperature, token_ids.data_ptr(), token_ids.dtype == _INT64,
        [each.data_ptr() for each in out], _threads(),
    )  # fmt: skip


def sample_confidence(logits: torch.Tensor, sampling: Sampling, out: SampledTokens) -> None:
    sampling = sampling.as_rows()  # kept until the call is over: it gives addresses
    _C.sample_confidence(
        cpp_view(logits), DTYPE_CODES[logits.dtype], out.topk_ids.shape[1], sampling.include_token,
        sampling.tempered, sampling_addresses(sampling), [each.data_ptr() for each in out],
        _threads(),
    )  # fmt: skip


def lm_head_confidence(head: Head, sampling: Sampling, out: SampledTokens) -> None:
    sampling = sampling.as_rows()  # kept until the call is over: it gives addresses
    _C.lm_head_confidence(
        *product_arguments(head), out.topk_ids.shape[1], sampling.include_token,
        sampling.tempered, sampling_addresses(sampling), [each.data_ptr() for each in out],
        _threads(),
    )  # fmt: skip


def lm_head_records(head: Head, sampling: Sampling, out: LMHeadRecords) -> None:
    sampling = sampling.as_rows()  # kept until the call is over: it gives addresses
    tensors = (out.top, out.sums, out.infs, out.nans, out.topk_logits, out.topk_ids)
    _C.lm_head_records(
        *product_arguments(head), sampling.tempered, sampling_addresses(sampling),
        out.topk_ids.shape[1], [each.data_ptr() for each in tensors], _threads(),
    )  # fmt: skip


def sampling_addresses(sampling: Sampling) -> list[int]:
    """Of the tensors, in order, 0 where there is none. The options are tensors."""
    tensors: tuple[torch.Tensor | None, ...] = sampling[:_TENSORS]  # type: ignore[assignment]
    return [0 if each is None else each.data_ptr() for each in tensors]


def product_arguments(head: Head) -> tuple[object, ...]:
    """A product as the C++ kernels take it."""
    hidden, weight, bias, round_logits = head
    quantized = isinstance(weight, PackedWeight)
    return (
        cpp_view(hidden),
        (0, *weight.shape, weight.shape[1], 1) if quantized else cpp_view(weight),
        weight.native if quantized else None,
        0 if bias is None else bias.data_ptr(),
        DTYPE_CODES[hidden.dtype],
        DTYPE_CODES[round_logits],
    )
