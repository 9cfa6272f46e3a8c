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


def view(tensor: torch.Tensor) -> tuple[int, ...]:
    """A tensor as C++ reads it: address, sizes, strides."""
    return (tensor.data_ptr(), *tensor.shape, *tensor.stride())


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
    _C.append_kv(
        view(k), view(v), view(k_cache), view(v_cache), slot_mapping.data_ptr(), k.itemsize,
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
    _C.tree_attention(
        view(q), view(k_cache), view(v_cache), plan.native, scale, view(out), view(lse),
        view(workspace), plan.num_queries, DTYPE_CODES[q.dtype], _threads(),
    )  # fmt: skip


def topk_confidence(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    temperature: float,
    union: bool,
    *outputs: torch.Tensor,
) -> None:
    """outputs: the fields of TopKConfidence, in order."""
    _C.topk_confidence(
        view(logits), DTYPE_CODES[logits.dtype], outputs[3].shape[1], union, temperature,
        token_ids.data_ptr(), token_ids.dtype == _INT64,
        [output.data_ptr() for output in outputs], _threads(),
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
    sampling = sampling.as_rows()  # kept until the call is over: it gives addresses
    _C.sample_confidence(
        view(logits), DTYPE_CODES[logits.dtype], outputs[3].shape[1], union, tempered,
        addresses(sampling), [output.data_ptr() for output in (token_ids, *outputs)], _threads(),
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
    sampling = sampling.as_rows()  # kept until the call is over: it gives addresses
    _C.lm_head_confidence(
        view(hidden), view(weight), 0 if bias is None else bias.data_ptr(),
        DTYPE_CODES[hidden.dtype], DTYPE_CODES[rounded], outputs[3].shape[1], union, tempered,
        addresses(sampling), [output.data_ptr() for output in (token_ids, *outputs)], _threads(),
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
        view(hidden), view(weight), 0 if bias is None else bias.data_ptr(),
        DTYPE_CODES[hidden.dtype], DTYPE_CODES[rounded], tempered, addresses(sampling),
        outputs[-1].shape[1], [output.data_ptr() for output in outputs], _threads(),
    )  # fmt: skip
