"""lm_head_confidence over shards of the vocabulary, as tensor parallelism cuts an LM head.

Each shard reads its own weights and leaves a record a row, of 164 bytes with 16 candidates
(lm_head_records). From the records of all shards every rank computes the same result
(merge_records). A draw that they do not decide needs logits of that row: of one shard where nothing
is filtered, of all where the filters keep more tokens than the records hold, or there is a +inf.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from marco_fast.ops.backends import load_backend
from marco_fast.ops.confidence.lm_head import check_product
from marco_fast.ops.confidence.sample import (
    SampledTokens,
    Sampling,
    check_scoring,
    sample_confidence,
    sampling_arguments,
)
from marco_fast.ops.reference.confidence import (
    GREEDY_TEMPERATURE,
    LOG2_E,
    add_to_paths,
    clean,
    first_beyond,
    score_of,
    softmax_of,
)
from marco_fast.ops.reference.philox import philox_uniform

__all__ = ["LMHeadRecords", "lm_head_records", "merge_records"]

CANDIDATES = 16  # of the largest, at least: a filtered draw looks at so many
LogitsOf = Callable[[int, torch.Tensor], torch.Tensor]


class LMHeadRecords(NamedTuple):
    """What one shard of the vocabulary tells the others of each row."""

    top: torch.Tensor  # [B] float32, the largest logit; -inf: none
    sums: torch.Tensor  # [B, 3] float64: of 2^y, of 2^y * y, of 2^y at the sampling temperature
    infs: torch.Tensor  # [B] int32, entries of +inf
    nans: torch.Tensor  # [B] int32, 1 where a NaN was seen
    topk_logits: torch.Tensor  # [B, C] float32, the largest, best first; -inf: no token
    topk_ids: torch.Tensor  # [B, C] int32, ids in the whole vocabulary; -1: no token
    vocab_begin: int  # the shard's first id
    entries: int  # the shard's tokens
    vocab_size: int  # of all shards together


def lm_head_records(
    hidden: torch.Tensor,
    weight_shard: torch.Tensor,
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
    check_product(hidden, weight_shard, bias, round_logits)
    check_scoring(vocab_size, top_k, "top_k")
    rows, entries, device = len(hidden), len(weight_shard), hidden.device
    if not 0 <= vocab_begin <= vocab_size - entries or entries < 1:
        raise ValueError(
            f"expected a shard inside [0, {vocab_size}), got [{vocab_begin}, "
            f"{vocab_begin + entries})"
        )
    none = torch.zeros(rows, dtype=torch.int64, device=device)
    sampling = sampling_arguments(
        hidden, temperature, top_p, min_p, sample_top_k, none, none, score, None, None, None
    )
    module = load_backend(backend, device, "lm_head_confidence")
    kept = max(top_k, CANDIDATES)
    tensors = (
        torch.empty(rows, dtype=torch.float32, device=device),
        torch.empty((rows, 3), dtype=torch.float64, device=device),
        torch.empty(rows, dtype=torch.int32, device=device),
        torch.empty(rows, dtype=torch.int32, device=device),
        torch.empty((rows, kept), dtype=torch.float32, device=device),
        torch.empty((rows, kept), dtype=torch.int32, device=device),
    )
    module.lm_head_records(
        hidden,
        weight_shard,
        None if bias is None else bias.float(),
        round_logits or torch.float32,
        sampling,
        vocab_size,
        score == "tempered",
        *tensors,
    )
    ids = tensors[-1]
    ids += (ids >= 0).int() * vocab_begin
    return LMHeadRecords(*tensors, vocab_begin, entries, vocab_size)


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
    vocab = _check_shards(records, top_k)
    check_scoring(vocab, top_k, denominator)
    sampling = sampling_arguments(
        records[0].top, temperature, top_p, min_p, sample_top_k, seeds, positions, score,
        path_sums, path_counts, active,
    )  # fmt: skip
    merged = _Merged(records, sampling.as_rows(), score == "tempered", vocab)
    token, logit = merged.draw(logits_of)
    result = merged.score(token, logit, top_k, denominator == "union")
    add_to_paths(result.confidence, path_sums, path_counts, active)
    return result


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
    if isinstance(top_k, int) and top_k > shape[1]:
        raise ValueError(f"expected top_k <= {shape[1]}, as the records hold, got {top_k}")
    return begin


class _Merged:
    """The rows of all shards together; everything in float64.

    A token's mass is 2^((z - top) * rate) with the rate of the scored or the sampling temperature,
    as in the kernels.
    """

    def __init__(
        self,
        records: Sequence[LMHeadRecords],
        sampling: Sampling,
        tempered: bool,
        vocab: int,
    ) -> None:
        self.records, self.vocab, self.sampling = records, vocab, sampling
        temperature, self.top_p, self.min_p, top_k, seeds, positions, *_ = sampling
        self.greedy = temperature < GREEDY_TEMPERATURE
        self.temperature = torch.where(self.greedy, 1.0, temperature).double()
        self.score_temperature = (
            temperature.double() if tempered else torch.ones_like(self.temperature)
        )
        self.most = torch.where(top_k > 0, top_k, vocab)
        self.filtered = (self.most < vocab) | (self.top_p < 1) | (self.min_p > 0)
        self.uniform = philox_uniform(seeds, positions)
        tops = torch.stack([each.top for each in records]).double()  # [shards, B]
        sums = torch.stack([each.sums for each in records])  # [shards, B, 3]
        self.top = tops.amax(0)
        self.infs = sum((each.infs for each in records), torch.zeros_like(records[0].infs))
        self.nan = torch.stack([each.nans for each in records]).amax(0)
        # Nothing above -inf: all masses are 0. Entries of +inf share the probability.
        finite = self.top.isfinite()
        below = torch.where(finite & tops.isfinite(), tops - self.top, -torch.inf)
        y = below * rate_of(self.score_temperature)
        scale = y.exp2()
        self.total = torch.where(self.infs > 0, self.infs, (scale * sums[..., 0]).sum(0))
        weighted = sums[..., 1] + torch.where(scale > 0, y, 0.0) * sums[..., 0]
        self.weighted = torch.where(scale > 0, scale * weighted, 0.0).sum(0)
        # [shards, B] in the distribution that is drawn from.
        self.masses = (below * rate_of(self.temperature)).exp2() * sums[..., 2]
        # Candidates of all shards: shards ascend in ids, so equal logits stay in the order of ids.
        logits = torch.cat([each.topk_logits for each in records], 1)
        ids = torch.cat([each.topk_ids for each in records], 1)
        ranked = torch.sort(logits, dim=1, descending=True, stable=True)
        self.z = ranked.values[:, : records[0].topk_logits.shape[1]].double()
        self.ids = ids.gather(1, ranked.indices)[:, : self.z.shape[1]].long()

    def draw(self, logits_of: LogitsOf) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row's token (int64, -1: none) and its logit."""
        drawn, decided = self.draw_from_candidates()
        sampled = ~self.greedy & (self.top > -torch.inf)
        from_candidates = sampled & self.filtered & decided & (self.infs == 0)
        at = torch.where(from_candidates, drawn, 0)[:, None]
        token, logit = self.ids.gather(1, at)[:, 0], self.z.gather(1, at)[:, 0]
        left = (sampled & ~from_candidates).nonzero()[:, 0]
        if len(left) == 0:
            return token, logit
        plain = ~self.filtered[left] & (self.infs[left] == 0)
        self.draw_from_one_shard(left[plain], logits_of, token, logit)
        self.draw_from_all(left[~plain], logits_of, token, logit)
        # A product of its own may round a logit otherwise than the shard that ranked it.
        known = self.ids == token[:, None]
        ranked = torch.where(known, self.z, -torch.inf).amax(1)
        return token, torch.where(known.any(1), ranked, logit)

    def draw_from_candidates(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where among the candidates each row's token is; whether they hold all that is kept."""
        temperature, z = self.temperature[:, None], self.z
        there = z > -torch.inf
        mass = torch.where(there, ((z - self.top[:, None]) * rate_of(temperature)).exp2(), 0.0)
        target = torch.where(self.top_p < 1, self.top_p * self.masses.sum(0), torch.inf)
        least = torch.where(self.min_p > 0, self.min_p, 1.0).double().log() * self.temperature
        least = torch.where(self.min_p > 0, least + self.top, -torch.inf)
        rank = torch.arange(z.shape[1], device=z.device)
        kept = (rank < self.most[:, None]) & (mass.cumsum(1) - mass < target[:, None])
        kept &= z >= least[:, None]
        kept[:, 0] = True
        kept &= there
        mass = torch.where(kept, mass, 0.0)
        total, count = mass.sum(1), there.sum(1)
        complete = (count < z.shape[1]) | (count == self.vocab)
        stopped = (kept.sum(1) < count) | (count >= self.most) | (total >= target)
        order = torch.argsort(torch.where(kept, self.ids, self.vocab), 1)
        at = first_beyond(mass.gather(1, order), self.uniform * total)
        return order.gather(1, at[:, None])[:, 0], complete | stopped

    def draw_from_one_shard(
        self, rows: torch.Tensor, logits_of: LogitsOf, token: torch.Tensor, logit: torch.Tensor
    ) -> None:
        """Unfiltered: the shard follows from the masses, the token from that shard's logits."""
        masses = self.masses[:, rows].T  # [rows, shards]
        target = self.uniform[rows] * masses.sum(1)
        owner = first_beyond(masses, target)
        before = masses.cumsum(1).gather(1, owner[:, None])[:, 0]
        before -= masses.gather(1, owner[:, None])[:, 0]
        for shard, record in enumerate(self.records):
            mine = owner == shard
            if not mine.any():
                continue
            some = rows[mine]
            z, _ = clean(logits_of(shard, some), torch.float64)
            rate = rate_of(self.temperature[some])[:, None]
            mass = ((z - self.top[some, None]) * rate).exp2()
            at = first_beyond(mass, (target - before)[mine])
            token[some] = at + record.vocab_begin
            logit[some] = z.gather(1, at[:, None])[:, 0]

    def draw_from_all(
        self, rows: torch.Tensor, logits_of: LogitsOf, token: torch.Tensor, logit: torch.Tensor
    ) -> None:
        """From the logits of all shards, as any draw."""
        if len(rows) == 0:
            return
        z = torch.cat([logits_of(shard, rows) for shard in range(len(self.records))], 1)
        temperature, top_p, min_p, sample_top_k, seeds, positions, *_ = self.sampling
        drawn = sample_confidence(
            z, temperature=temperature[rows], top_p=top_p[rows], min_p=min_p[rows],
            sample_top_k=sample_top_k[rows], seeds=seeds[rows], positions=positions[rows], top_k=1,
        ).token_ids.long()  # fmt: skip
        token[rows] = drawn
        logit[rows] = clean(z, torch.float64)[0].gather(1, drawn[:, None])[:, 0]

    def score(
        self, token: torch.Tensor, logit: torch.Tensor, top_k: int, union: bool
    ) -> SampledTokens:
        """As of any row, over the best candidates and the token, with the total of all shards."""
        z = torch.cat([self.z[:, :top_k], logit[:, None]], 1)
        total = self.total[:, None].double()
        log_total = torch.where(total > 0, total, 1.0).log()
        softmax = softmax_of(z, self.score_temperature)._replace(
            total=total,
            log_total=log_total,
            lse=self.top / self.score_temperature + log_total[:, 0],
        )
        empty = self.top == -torch.inf
        status = self.nan + 2 * (self.infs > 0).int() + 4 * empty.int()
        places = torch.arange(top_k, device=z.device).expand(len(z), top_k)
        own = torch.where(empty, -1, top_k)
        scored = score_of(z, softmax, places, own, status.int(), union)
        ids = torch.where(scored.topk_ids >= 0, self.ids[:, :top_k], -1)
        weighted = torch.where(self.infs > 0, 0.0, self.weighted) / LOG2_E
        entropy = log_total[:, 0] - weighted / torch.where(total > 0, total, 1.0)[:, 0]
        return SampledTokens(
            torch.where(empty, -1, token).int(),
            scored.confidence.float(),
            scored.token_logprobs.float(),
            scored.lse.float(),
            scored.topk_logprobs.float(),
            ids.int(),
            scored.status,
            entropy.clamp_min(0.0).float(),
        )


def rate_of(temperature: torch.Tensor) -> torch.Tensor:
    """log2(e) / T in float64, rounded to a float32 below infinity as the kernels do."""
    rate = LOG2_E / temperature
    return rate.clamp_max(torch.finfo(torch.float32).max).float().double()
