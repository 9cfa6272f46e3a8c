"""The backend "cpu": the C++ kernels, which take the tensors' addresses, sizes and strides.

The operations have checked dtypes, shapes and strides. At a few rows a call takes some tens of
microseconds, so nothing here makes a view or a copy of a tensor.
"""

import torch

from marco_fast import _C
from marco_fast.ops.attention.plan import TreeAttentionPlan
from marco_fast.ops.confidence.sample import Sampling

__all__ = [
    "append_kv",
    "lm_head_confidence",
    "lm_head_records",
    "sample_confidence",
    "topk_confidence",
    "tree_attention",
]

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/cpu/base/dtypes.h
_INT64 = torch.int64
_threads = torch.get_num_threads


def addresses(sampling: Sampling) -> list[int]:
    """Of each field, in order; 0 where there is none. The options are tensors."""
    return [0 if each is None else each.data_ptr() for each in sampling]


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
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    temperature: float,
    union: bool,
    *outputs: torch.Tensor,
) -> None:
    """outputs: the fields of TopKConfidence, in order."""
    rows, vocabulary = logits.shape
    _C.topk_confidence(
        logits.data_ptr(), DTYPE_CODES[logits.dtype], rows, vocabulary, logits.stride(0),
        outputs[3].shape[1], union, [output.data_ptr() for output in outputs],
        token_ids.data_ptr(), token_ids.dtype == _INT64, temperature, _threads(),
    )  # fmt: skip


def sample_confidence(
    logits: torch.Tensor,
    sampling: Sampling,
    tempered: bool,
    union: bool,
    token_ids: torch.Tensor,
    *outputs: torch.Tensor,
) -> None:
    """token_ids and outputs: the fields of SampledTokens, in order."""
    rows, vocabulary = logits.shape
    *scores, entropy = outputs
    sampling = sampling.as_rows()  # kept until the call is over: it gives addresses
    _C.sample_confidence(
        logits.data_ptr(), DTYPE_CODES[logits.dtype], rows, vocabulary, logits.stride(0),
        scores[3].shape[1], union, [output.data_ptr() for output in scores],
        addresses(sampling),
        token_ids.data_ptr(), entropy.data_ptr(), tempered, _threads(),
    )  # fmt: skip


def lm_head_confidence(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rounded: torch.dtype,
    sampling: Sampling,
    tempered: bool,
    union: bool,
    token_ids: torch.Tensor,
    *outputs: torch.Tensor,
) -> None:
    """token_ids and outputs: the fields of SampledTokens, in order."""
    *scores, entropy = outputs
    sampling = sampling.as_rows()  # kept until the call is over: it gives addresses
    _C.lm_head_confidence(
        hidden.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
        DTYPE_CODES[hidden.dtype], DTYPE_CODES[rounded], [*hidden.shape, len(weight)],
        [hidden.stride(0), weight.stride(0)], scores[3].shape[1], union,
        [output.data_ptr() for output in scores],
        addresses(sampling),
        token_ids.data_ptr(), entropy.data_ptr(), tempered, _threads(),
    )  # fmt: skip


def lm_head_records(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rounded: torch.dtype,
    sampling: Sampling,
    all_vocab: int,
    tempered: bool,
    *outputs: torch.Tensor,
) -> None:
    """outputs: the tensors of LMHeadRecords, in order."""
    sampling = sampling.as_rows()  # kept until the call is over: it gives addresses
    _C.lm_head_records(
        hidden.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
        DTYPE_CODES[hidden.dtype], DTYPE_CODES[rounded], [*hidden.shape, len(weight)],
        [hidden.stride(0), weight.stride(0)],
        addresses(sampling), tempered,
        outputs[-1].shape[1], [output.data_ptr() for output in outputs], _threads(),
    )  # fmt: skip
