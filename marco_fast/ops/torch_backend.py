"""The backend "torch": the reference in float32, for devices that no kernel runs on."""

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
from marco_fast.ops.confidence.sample import Sampling

__all__ = [
    "append_kv",
    "lm_head_confidence",
    "lm_head_records",
    "sample_confidence",
    "topk_confidence",
    "tree_attention",
]


def _copy(results: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]) -> None:
    for result, output in zip(results, outputs, strict=True):
        output.copy_(result)


def append_kv(inputs: NewTokens, caches: Caches) -> None:
    reference.append_kv(inputs.k, inputs.v, *caches, inputs.slot_mapping)


def tree_attention(
    inputs: AttentionInputs, options: AttentionOptions, result: AttentionResult
) -> None:
    """Rows of the result after the plan's queries are left as they are."""
    queries = slice(inputs.plan.num_queries)
    for got, filled in zip(reference.tree_attention(*inputs, options.scale), result, strict=True):
        if filled is not None:
            filled[queries].copy_(got[queries])


def topk_confidence(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    temperature: float,
    union: bool,
    *outputs: torch.Tensor,
) -> None:
    """outputs: the fields of TopKConfidence, in order."""
    result = reference.topk_confidence(
        logits,
        token_ids,
        top_k=outputs[3].shape[1],
        temperature=temperature,
        denominator="union" if union else "top_k",
        dtype=torch.float32,
    )
    _copy(result, outputs)


def sample_confidence(
    logits: torch.Tensor,
    sampling: Sampling,
    tempered: bool,
    union: bool,
    *outputs: torch.Tensor,
) -> None:
    """outputs: the fields of SampledTokens, in order."""
    result = reference.sample_confidence(
        logits,
        **sampling._asdict(),
        top_k=outputs[4].shape[1],
        score="tempered" if tempered else "raw",
        denominator="union" if union else "top_k",
        dtype=torch.float32,
    )
    _copy(result, outputs)


def lm_head_confidence(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rounded: torch.dtype,
    *arguments: Any,
) -> None:
    """arguments: those of sample_confidence, after the logits."""
    sample_confidence(_logits(hidden, weight, bias, rounded), *arguments)


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, rounded: torch.dtype
) -> torch.Tensor:
    logits = hidden.float() @ weight.float().T
    if bias is not None:
        logits += bias
    return logits.to(rounded)


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
    logits = _logits(hidden, weight, bias, rounded)
    kept = outputs[-1].shape[1]
    temperature = sampling.as_rows().temperature
    _copy(reference.lm_head_records(logits, temperature, tempered, kept), outputs)
