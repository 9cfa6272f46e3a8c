"""lm_head_confidence over shards of the vocabulary, as tensor parallelism cuts an LM head.

Each shard reads its own weights and leaves a summary of 164 bytes per row with 16 candidates
(lm_head_records). From the summaries of all shards every rank computes the same result
(merge_records). A draw that they do not decide needs logits of that row: of one shard where nothing
is filtered, of all where the filters keep more tokens than the records hold, or there is a +inf.
"""

from collections.abc import Sequence

import torch

from marco_fast.ops.backends import load_backend
from marco_fast.ops.confidence.lm_head import head_arguments
from marco_fast.ops.confidence.merge import LogitsOf, MergedShards
from marco_fast.ops.confidence.options import check_scoring, sampling_arguments
from marco_fast.ops.confidence.sample import SampledTokens
from marco_fast.ops.isolation import isolated
from marco_fast.ops.numbers import whole, whole_number
from marco_fast.ops.quantized import PackedWeight
from marco_fast.ops.reference.confidence import LMHeadRecords, add_to_paths
from marco_fast.ops.tensors import mark_written, tensor_of

__all__ = ["LMHeadRecords", "lm_head_records", "merge_records"]

CANDIDATES = 16  # of the largest, at least: a filtered draw looks at so many


@isolated
def lm_head_records(
    hidden: torch.Tensor,
    weight_shard: torch.Tensor | PackedWeight,
    vocab_begin: int,
    vocab_size: int,
    *,
    bias: torch.Tensor | None = None,
    round_logits: torch.dtype | None = None,
    temperature: float | torch.Tensor = 1.0,
    top_p: float | torch.Tensor = 1.0,
    min_p: float | torch.Tensor = 0.0,
    sample_top_k: int | torch.Tensor = 0,
    top_k: int = 5,
    score: str = "raw",
    backend: str | None = None,
) -> LMHeadRecords:
    """What one shard of the vocabulary leaves for merge_records.

    Args:
        hidden: [B, H], as of `lm_head_confidence`; the same for every shard.
        weight_shard: [entries, H], rows vocab_begin on of the whole weight, any number of them.
        vocab_begin: the id of the shard's first token.
        vocab_size: V, the tokens of all shards together.
        bias: [entries] float, the shard's part.
        round_logits, temperature, top_p, min_p, sample_top_k, top_k, score, backend: as of
            `lm_head_confidence`, the same for every shard.

    Raises:
        ValueError: a dtype, shape, stride or range that is not as above.
        BackendError: the named backend cannot run here.
    """
    head = head_arguments(hidden, weight_shard, bias, round_logits, backend)
    hidden, shard_size = head.hidden, len(head.weight)
    vocab_begin = whole_number("vocab_begin", vocab_begin)
    vocab_size = whole_number("vocab_size", vocab_size)
    top_k = check_scoring(vocab_size, top_k, "top_k")
    rows, device = len(hidden), hidden.device
    if not 0 <= vocab_begin <= vocab_size - shard_size or shard_size < 1:
        raise ValueError(
            f"expected a shard inside [0, {vocab_size}), got [{vocab_begin}, "
            f"{vocab_begin + shard_size})"
        )
    none = torch.zeros(rows, dtype=torch.int64, device=device)
    sampling = sampling_arguments(
        hidden, temperature, top_p, min_p, sample_top_k, none, none, score, "top_k", None, None,
        None,
    )  # fmt: skip
    module = load_backend(backend, device, "lm_head_records")
    shard = (vocab_begin, shard_size, vocab_size)
    result = _empty_records(rows, max(top_k, CANDIDATES), shard, device)
    module.lm_head_records(head, sampling, result)
    ids = result.topk_ids
    ids += (ids >= 0).int() * vocab_begin
    return result


def _empty_records(
    rows: int, candidates: int, shard: tuple[int, int, int], device: torch.device
) -> LMHeadRecords:
    """What a backend fills."""
    return LMHeadRecords(
        torch.empty(rows, dtype=torch.float32, device=device),
        torch.empty((rows, 3), dtype=torch.float64, device=device),
        torch.empty(rows, dtype=torch.int32, device=device),
        torch.empty(rows, dtype=torch.int32, device=device),
        torch.empty((rows, candidates), dtype=torch.float32, device=device),
        torch.empty((rows, candidates), dtype=torch.int32, device=device),
        *shard,
    )


@isolated
def merge_records(
    records: Sequence[LMHeadRecords],
    logits_of: LogitsOf,
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
) -> SampledTokens:
    """The result of lm_head_confidence over the whole vocabulary, from the records of its shards.

    Sums are merged in float64, in the order of the shards: scores may differ from those of one
    shard in the last bits, and a draw where its random number is that close to another token's.
    It waits for the device, to know whether logits are needed: not for a CUDA graph.

    Args:
        records: of every shard, in the order of their ids and without gaps.
        logits_of: logits_of(shard, rows) gives the float32 logits [len(rows), entries] of a shard
            for some rows (int64): its part of the product, bias and rounding included. Ranks that
            merge the same records make the same calls in the same order, so it may be a broadcast
            by the rank that holds the shard.
        temperature, top_p, min_p, sample_top_k, seeds, positions, top_k, score, denominator,
            path_sums, path_counts, active: as of `sample_confidence`; what lm_head_records takes
            too, as it was there.

    Raises:
        ValueError: shards that do not follow each other from 0, or of other rows; an argument that
            is not as above.
    """
    records = [tensors_of(each) for each in records]
    top_k = check_scoring(_check_shards(records, top_k), top_k, denominator)
    sampling = sampling_arguments(
        records[0].top, temperature, top_p, min_p, sample_top_k, seeds, positions, score,
        denominator, path_sums, path_counts, active,
    )  # fmt: skip
    merged = MergedShards(records, sampling.as_rows())
    token, logit = merged.draw(logits_of)
    result = merged.score(token, logit, top_k)
    paths = (sampling.path_sums, sampling.path_counts)
    with torch.inference_mode():  # where the sums may have been made
        add_to_paths(result.confidence, *paths, sampling.active)
    mark_written(*paths)
    return result


def tensors_of(records: LMHeadRecords) -> LMHeadRecords:
    """One shard's records, checked to be memory.

    Raises:
        ValueError: they are not what lm_head_records returns.
    """
    if not isinstance(records, LMHeadRecords):
        raise ValueError(f"expected what lm_head_records returns, got {type(records).__name__}")
    return records._replace(
        top=tensor_of("top", records.top),
        sums=tensor_of("sums", records.sums),
        infs=tensor_of("infs", records.infs),
        nans=tensor_of("nans", records.nans),
        topk_logits=tensor_of("topk_logits", records.topk_logits),
        topk_ids=tensor_of("topk_ids", records.topk_ids),
    )


def _check_shards(records: Sequence[LMHeadRecords], top_k: int) -> int:
    """V, the tokens of all shards together."""
    if len(records) == 0:
        raise ValueError("expected the records of at least one shard, got none")
    begin, shape = 0, records[0].topk_logits.shape
    for each in records:
        if each.vocab_begin != begin:
            raise ValueError(f"expected a shard that begins at {begin}, got {each.vocab_begin}")
        if each.topk_logits.shape != shape:
            raise ValueError(
                f"expected records of {list(shape)} candidates, got {list(each.topk_logits.shape)}"
            )
        begin += each.entries
    for each in records:
        if each.vocab_size != begin:
            raise ValueError(f"expected shards of all {each.vocab_size} tokens, got {begin}")
    if (whole(top_k) or 0) > shape[1]:
        raise ValueError(f"expected top_k <= {shape[1]}, as the records hold, got {top_k}")
    return begin
