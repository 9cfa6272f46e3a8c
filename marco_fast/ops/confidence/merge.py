"""The rows of all shards of a vocabulary, from their summaries: merged, drawn and scored."""

from collections.abc import Callable, Sequence

import torch

from marco_fast.ops.confidence.options import Sampling, float_tensor
from marco_fast.ops.confidence.sample import sample_confidence
from marco_fast.ops.reference.confidence import (
    GREEDY_TEMPERATURE,
    LOG2_E,
    LMHeadRecords,
    SampledTokens,
    clean,
    first_beyond,
    score_of,
    softmax_of,
)
from marco_fast.ops.reference.philox import philox_uniform

__all__ = ["LogitsOf", "MergedShards"]

LogitsOf = Callable[[int, torch.Tensor], torch.Tensor]


class MergedShards:
    """The rows of all shards together; everything in float64.

    A token's mass is 2^((z - top) * rate) with the rate of the scored or the sampling temperature,
    as in the kernels.
    """

    def __init__(self, records: Sequence[LMHeadRecords], sampling: Sampling) -> None:
        self.records, self.sampling = records, sampling
        self.vocab_size = records[0].vocab_size
        self.top_p, self.min_p = sampling.top_p, sampling.min_p
        self.greedy = sampling.temperature < GREEDY_TEMPERATURE
        self.temperature = torch.where(self.greedy, 1.0, sampling.temperature).double()
        self.score_temperature = torch.ones_like(self.temperature)
        if sampling.tempered:
            self.score_temperature = sampling.temperature.double()
        self.most = torch.where(sampling.sample_top_k > 0, sampling.sample_top_k, self.vocab_size)
        self.filtered = (self.most < self.vocab_size) | (self.top_p < 1) | (self.min_p > 0)
        self.uniform = philox_uniform(sampling.seeds, sampling.positions)
        self.merge(records)

    def merge(self, records: Sequence[LMHeadRecords]) -> None:
        """The sums of all shards, and their best candidates."""
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
        whole = ~self.filtered[left] & (self.infs[left] == 0)
        self.draw_from_one_shard(left[whole], logits_of, token, logit)
        self.draw_from_all(left[~whole], logits_of, token, logit)
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
        complete = (count < z.shape[1]) | (count == self.vocab_size)
        stopped = (kept.sum(1) < count) | (count >= self.most) | (total >= target)
        order = torch.argsort(torch.where(kept, self.ids, self.vocab_size), 1)
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
            z, _ = clean(self.logits_of_shard(logits_of, shard, some), torch.float64)
            rate = rate_of(self.temperature[some])[:, None]
            mass = ((z - self.top[some, None]) * rate).exp2()
            at = first_beyond(mass, (target - before)[mine])
            token[some] = at + record.vocab_begin
            logit[some] = z.gather(1, at[:, None])[:, 0]

    def logits_of_shard(self, logits_of: LogitsOf, shard: int, rows: torch.Tensor) -> torch.Tensor:
        """What the caller's function gives, checked."""
        z = float_tensor("what logits_of returns", logits_of(shard, rows))
        shape = (len(rows), self.records[shard].entries)
        if z.shape != shape or z.device != rows.device:
            raise ValueError(
                f"expected {list(shape)} logits on {rows.device} of logits_of, got "
                f"{list(z.shape)} on {z.device}"
            )
        return z

    def draw_from_all(
        self, rows: torch.Tensor, logits_of: LogitsOf, token: torch.Tensor, logit: torch.Tensor
    ) -> None:
        """From the logits of all shards, as any draw."""
        if len(rows) == 0:
            return
        shards = range(len(self.records))
        z = torch.cat([self.logits_of_shard(logits_of, shard, rows) for shard in shards], 1)
        own = self.sampling
        drawn = sample_confidence(
            z, temperature=own.temperature[rows], top_p=own.top_p[rows], min_p=own.min_p[rows],
            sample_top_k=own.sample_top_k[rows], seeds=own.seeds[rows],
            positions=own.positions[rows], top_k=1,
        ).token_ids.long()  # fmt: skip
        token[rows] = drawn
        logit[rows] = clean(z, torch.float64)[0].gather(1, drawn[:, None])[:, 0]

    def score(self, token: torch.Tensor, logit: torch.Tensor, top_k: int) -> SampledTokens:
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
        ranks = torch.arange(top_k, device=z.device).expand(len(z), top_k)
        own = torch.where(empty, -1, top_k)
        include_token = self.sampling.include_token
        scored = score_of(z, softmax, ranks, own, status.int(), include_token)
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
