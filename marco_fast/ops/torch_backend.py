"""The backend "torch": the reference in float32, for devices that no kernel runs on.

In inference mode, as what is written in place may have been made there.
"""

from typing import Any

import torch

from marco_fast.ops import reference
from marco_fast.ops.attention.attend import (
    AttentionInputs,
    AttentionOptions,
    AttentionResult,
    Caches,
    NewTokens,
)
from marco_fast.ops.confidence.options import Head, Sampling, Scoring
from marco_fast.ops.isolation import exact_products
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


@torch.inference_mode()
def append_kv(inputs: NewTokens, caches: Caches) -> None:
    reference.append_kv(inputs.k, inputs.v, *caches, inputs.slot_mapping)


@torch.inference_mode()
def tree_attention(
    inputs: AttentionInputs, options: AttentionOptions, result: AttentionResult
) -> None:
    """Rows of the result after the plan's queries are left as they are."""
    queries = slice(inputs.plan.num_queries)
    for got, filled in zip(reference.tree_attention(*inputs, options.scale), result, strict=True):
        if filled is not None:
            filled[queries].copy_(got[queries])


@torch.inference_mode()
def topk_confidence(
    logits: torch.Tensor, token_ids: torch.Tensor, scoring: Scoring, out: TopKConfidence
) -> None:
    result = reference.topk_confidence(
        logits,
        token_ids,
        top_k=out.topk_ids.shape[1],
        temperature=scoring.temperature,
        denominator="union" if scoring.include_token else "top_k",
        dtype=torch.float32,
    )
    _fill(out, result)


@torch.inference_mode()
def sample_confidence(logits: torch.Tensor, sampling: Sampling, out: SampledTokens) -> None:
    options = sampling._asdict()
    result = reference.sample_confidence(
        logits,
        score="tempered" if options.pop("tempered") else "raw",
        denominator="union" if options.pop("include_token") else "top_k",
        **options,
        top_k=out.topk_ids.shape[1],
        dtype=torch.float32,
    )
    _fill(out, result)


@torch.inference_mode()
def lm_head_confidence(head: Head, sampling: Sampling, out: SampledTokens) -> None:
    sample_confidence(_logits(head), sampling, out)


@torch.inference_mode()
def lm_head_records(head: Head, sampling: Sampling, out: LMHeadRecords) -> None:
    temperature, candidates = sampling.as_rows().temperature, out.topk_ids.shape[1]
    result = reference.lm_head_records(_logits(head), temperature, sampling.tempered, candidates)
    _fill(out, result)


@exact_products
def _logits(head: Head) -> torch.Tensor:
    weight = head.weight
    weight = weight.dequantize() if isinstance(weight, PackedWeight) else weight.float()
    logits = head.hidden.float() @ weight.T
    if head.bias is not None:
        logits += head.bias
    return logits.to(head.round_logits)


def _fill(out: Any, result: Any) -> None:
    """Copies the tensors of a result into those of another of the same class."""
    for name, value in result._asdict().items():
        if isinstance(value, torch.Tensor):
            getattr(out, name).copy_(value)
