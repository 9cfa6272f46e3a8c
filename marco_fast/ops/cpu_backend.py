"""The backend "cpu": the C++ kernels, which take the tensors' addresses, sizes and strides.

The operations have checked dtypes, shapes and strides. At a few rows a call takes some tens of
microseconds, so nothing here makes a view or a copy of a tensor.
"""

import torch

from marco_fast import _C
from marco_fast.ops.attention.plan import TreeAttentionPlan
from marco_fast.ops.confidence.options import Head, Sampling, Scoring
from marco_fast.ops.dtypes import DTYPE_CODES
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
_threads = torch.get_num_threads


def append_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    size = k.itemsize
    tokens, heads, head_dim = k.shape
    pages, _, page_size, _ = k_cache.shape
    strides = [n * size for each in (k, v, k_cache, v_cache) for n in each.stride()[:2]]
    _C.append_kv(
        k.data_ptr(), v.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(),
        slot_mapping.data_ptr(), strides, tokens, heads, pages, page_size, head_dim * size,
        _threads(),
    )  # fmt: skip


def tree_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: TreeAttentionPlan,
    scale: float,
    out: torch.Tensor,
    lse: torch.Tensor,
    workspace: torch.Tensor,
) -> None:
    strides = [n for each in (q, k_cache, v_cache, out, lse) for n in each.stride()[:2]]
    _C.tree_attention(
        q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), plan.native, scale, out.data_ptr(),
        lse.data_ptr(), workspace.data_ptr(), workspace.numel(), strides,
        plan.num_queries, q.shape[1], *k_cache.shape, DTYPE_CODES[q.dtype], _threads(),
    )  # fmt: skip


def topk_confidence(
    logits: torch.Tensor, token_ids: torch.Tensor, scoring: Scoring, out: TopKConfidence
) -> None:
    rows, vocab_size = logits.shape
    _C.topk_confidence(
        logits.data_ptr(), DTYPE_CODES[logits.dtype], rows, vocab_size, logits.stride(0),
        out.topk_ids.shape[1], scoring.include_token, score_addresses(out), token_ids.data_ptr(),
        token_ids.dtype == _INT64, scoring.temperature, _threads(),
    )  # fmt: skip


def sample_confidence(logits: torch.Tensor, sampling: Sampling, out: SampledTokens) -> None:
    rows, vocab_size = logits.shape
    sampling = sampling.as_rows()  # kept until the call is over: it gives addresses
    _C.sample_confidence(
        logits.data_ptr(), DTYPE_CODES[logits.dtype], rows, vocab_size, logits.stride(0),
        out.topk_ids.shape[1], sampling.include_token, score_addresses(out),
        sampling_addresses(sampling), out.token_ids.data_ptr(), out.entropy.data_ptr(),
        sampling.tempered, _threads(),
    )  # fmt: skip


def lm_head_confidence(head: Head, sampling: Sampling, out: SampledTokens) -> None:
    sampling = sampling.as_rows()  # kept until the call is over: it gives addresses
    _C.lm_head_confidence(
        *product_arguments(head), out.topk_ids.shape[1], sampling.include_token,
        score_addresses(out), sampling_addresses(sampling), out.token_ids.data_ptr(),
        out.entropy.data_ptr(), sampling.tempered, _threads(),
    )  # fmt: skip


def lm_head_records(head: Head, sampling: Sampling, out: LMHeadRecords) -> None:
    sampling = sampling.as_rows()  # kept until the call is over: it gives addresses
    tensors = (out.top, out.sums, out.infs, out.nans, out.topk_logits, out.topk_ids)
    _C.lm_head_records(
        *product_arguments(head), sampling_addresses(sampling), sampling.tempered,
        out.topk_ids.shape[1], [each.data_ptr() for each in tensors], _threads(),
    )  # fmt: skip


def score_addresses(out: TopKConfidence | SampledTokens) -> list[int]:
    """Of what every scored row gets, in the order of the C++ kernels."""
    return [
        out.confidence.data_ptr(),
        out.token_logprobs.data_ptr(),
        out.lse.data_ptr(),
        out.topk_logprobs.data_ptr(),
        out.topk_ids.data_ptr(),
        out.status.data_ptr(),
    ]


def sampling_addresses(sampling: Sampling) -> list[int]:
    """Of the tensors, in order, 0 where there is none. The options are tensors."""
    return [0 if each is None else each.data_ptr() for each in sampling[:9]]


def product_arguments(head: Head) -> tuple[object, ...]:
    """A product as the C++ kernels take it."""
    hidden, weight, bias, round_logits = head
    return (
        hidden.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        DTYPE_CODES[hidden.dtype],
        DTYPE_CODES[round_logits],
        [*hidden.shape, len(weight)],
        [hidden.stride(0), weight.stride(0)],
    )
