"""topk_confidence and sample_confidence in PyTorch: their specification (float64)."""

from typing import Any, NamedTuple

import torch

from marco_fast.ops.isolation import exact_products, isolated
from marco_fast.ops.reference.philox import philox_uniform

__all__ = [
    "GREEDY_TEMPERATURE", "LOG2_E", "LMHeadRecords", "SampledTokens", "TopKConfidence",
    "add_to_paths", "clean", "first_beyond", "lm_head_confidence", "lm_head_records",
    "sample_confidence", "score_of", "softmax_of", "topk_confidence",
]  # fmt: skip


GREEDY_TEMPERATURE = 1e-5  # below it a draw is the largest
LOG2_E = 1.4426950408889634


class TopKConfidence(NamedTuple):
    """The k likeliest tokens of each row, its normaliser and its token's confidence."""

    confidence: torch.Tensor  # [B] in [0, 1]
    token_logprobs: torch.Tensor  # [B] natural log
    lse: torch.Tensor  # [B] logsumexp(logits / temperature)
    topk_logprobs: torch.Tensor  # [B, top_k] descending; -inf where there is no token
    topk_ids: torch.Tensor  # [B, top_k] int32; equal logits: smaller id first; -1: no token
    status: torch.Tensor  # [B] int32 bits: 1 NaN, 2 +inf, 4 nothing above -inf, 8 id out of range


class SampledTokens(NamedTuple):
    """A drawn token of each row, then the fields of TopKConfidence, then the entropy."""

    token_ids: torch.Tensor  # [B] int32; -1 where nothing is above -inf
    confidence: torch.Tensor
    token_logprobs: torch.Tensor
    lse: torch.Tensor
    topk_logprobs: torch.Tensor
    topk_ids: torch.Tensor
    status: torch.Tensor
    entropy: torch.Tensor  # [B] nats, of the scored distribution


class LMHeadRecords(NamedTuple):
    """What one shard of the vocabulary tells the others of each row: the shard's summary.

    Sums are of 2^y and 2^y * y with y = (z - top) * log2(e) / T; entries of +inf count 1 each.
    """

    top: torch.Tensor  # [B] float32, the largest logit; -inf: none
    sums: torch.Tensor  # [B, 3] float64: of 2^y, of 2^y * y, of 2^y at the sampling temperature
    infs: torch.Tensor  # [B] int32, entries of +inf
    nans: torch.Tensor  # [B] int32, 1 where a NaN was seen
    topk_logits: torch.Tensor  # [B, C] float32, the largest, best first; -inf: no token
    topk_ids: torch.Tensor  # [B, C] int32, ids in the whole vocabulary; -1: no token
    vocab_begin: int  # the shard's first id
    entries: int  # the shard's tokens
    vocab_size: int  # of all shards together


class Softmax(NamedTuple):
    shifted: torch.Tensor  # [B, V] (z - max) / T; -inf for no probability
    masses: torch.Tensor  # [B, V] exp(shifted)
    total: torch.Tensor  # [B, 1] sum of masses; 0 where nothing is above -inf
    log_total: torch.Tensor  # [B, 1] its log, 0 there
    lse: torch.Tensor  # [B]


def clean(logits: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with NaN read as -inf, and the status bits 1, 2 and 4 (int32)."""
    nan = logits.isnan()
    z = logits.to(dtype).masked_fill(nan, -torch.inf)
    status = nan.any(-1).int() + 2 * (z == torch.inf).any(-1).int()
    return z, status + 4 * (z == -torch.inf).all(-1).int()


def softmax_of(z: torch.Tensor, temperature: torch.Tensor) -> Softmax:
    largest = z.amax(-1, keepdim=True)
    # Entries of +inf equal the maximum and share the probability; a row without any logit has none.
    scale = temperature[:, None]
    gap = torch.where(z == largest, 0.0, z - largest)
    # Where the difference of two logits is beyond the largest number, each is divided alone.
    shifted = torch.where(gap == -torch.inf, z / scale - largest / scale, gap / scale)
    shifted = shifted.masked_fill(largest == -torch.inf, -torch.inf)
    masses = shifted.exp()
    total = masses.sum(-1, keepdim=True)
    log_total = torch.where(total > 0, total, 1.0).log()
    lse = (largest / temperature[:, None] + log_total)[:, 0]
    return Softmax(shifted, masses, total, log_total, lse)


def _rank(z: torch.Tensor) -> torch.Tensor:
    """Ids by value descending, then id ascending: [B, V] int64."""
    return torch.sort(z, dim=-1, descending=True, stable=True).indices


def score_of(
    z: torch.Tensor,
    softmax: Softmax,
    ids: torch.Tensor,
    token_ids: torch.Tensor,
    status: torch.Tensor,
    include_token: bool,
) -> TopKConfidence:
    """ids [B, k] are the k largest in order; a token id outside [0, V) has no probability."""
    logprobs = softmax.shifted - softmax.log_total
    has_token = (token_ids >= 0) & (token_ids < z.shape[1])
    token = token_ids.long().clamp(0, z.shape[1] - 1)[:, None]
    topk_logits, token_logit = z.gather(1, ids), z.gather(1, token)[:, 0]
    mass = torch.where(has_token, softmax.masses.gather(1, token)[:, 0], 0.0)
    denominator = softmax.masses.gather(1, ids).sum(-1)
    if include_token:
        denominator = denominator + torch.where(token_logit < topk_logits[:, -1], mass, 0.0)
    return TopKConfidence(
        torch.where(denominator > 0, mass / denominator, 0.0),
        torch.where(has_token, logprobs.gather(1, token)[:, 0], -torch.inf),
        softmax.lse,
        logprobs.gather(1, ids),
        torch.where(topk_logits > -torch.inf, ids, -1).int(),
        status,
    )


@isolated
def topk_confidence(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    top_k: int = 5,
    temperature: float = 1.0,
    denominator: str = "top_k",
    dtype: torch.dtype = torch.float64,
) -> TopKConfidence:
    """confidence = exp(z_t / T) / sum of exp(z_k / T) over the top_k largest z_k.

    Arguments and results are those of `marco_fast.topk_confidence`, in `dtype`; the temperature is
    a float32 value; a token id outside [0, V) sets status bit 8 and has confidence 0 and logprob
    -inf.
    """
    z, status = clean(logits, dtype)
    outside = (token_ids < 0) | (token_ids >= z.shape[1])
    softmax = softmax_of(z, _per_row(temperature, z, torch.float32).to(dtype))
    ids = _rank(z)[:, :top_k]
    return score_of(z, softmax, ids, token_ids, status + 8 * outside.int(), denominator == "union")


def _draw(
    z: torch.Tensor,
    ranked: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    sample_top_k: torch.Tensor,
    u: torch.Tensor,
) -> torch.Tensor:
    """[B] int64: inverse CDF at u, in id order, over the tokens that the filters keep (float64)."""
    softmax = softmax_of(z.double(), temperature.double())
    masses, shifted = softmax.masses.gather(1, ranked), softmax.shifted.gather(1, ranked)
    before = masses.cumsum(-1) - masses
    rank = torch.arange(z.shape[1], device=z.device)
    keep = (sample_top_k[:, None] == 0) | (rank < sample_top_k[:, None])
    keep &= (top_p[:, None] >= 1) | (before < top_p.double()[:, None] * softmax.total)
    keep &= (min_p[:, None] == 0) | (shifted >= min_p.double()[:, None].log())
    keep[:, 0] = True
    kept = torch.zeros_like(masses).scatter(1, ranked, masses * keep)
    return first_beyond(kept, u * kept.cumsum(-1)[:, -1])


def first_beyond(masses: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Where the cumulative mass [B, N] first exceeds target [B]; else the last of any mass."""
    found = torch.searchsorted(masses.cumsum(-1), target[:, None], right=True)[:, 0]
    # Rounding may put the target at the end.
    last = masses.shape[1] - 1 - (masses > 0).flip(-1).int().argmax(-1)
    return torch.where(found < masses.shape[1], found, last)


def add_to_paths(
    confidence: torch.Tensor,
    path_sums: torch.Tensor | None,
    path_counts: torch.Tensor | None,
    active: torch.Tensor | None,
) -> None:
    """Adds each row's confidence [B] to its path, where there are paths and it is active."""
    counted = torch.ones_like(confidence, dtype=torch.bool) if active is None else active
    if path_sums is not None:
        fixed = (confidence.float().double() * 2.0**40).round().long()
        path_sums += torch.where(counted, fixed, 0)
    if path_counts is not None:
        path_counts += counted.int()


def _per_row(value: float | torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.as_tensor(value, dtype=dtype, device=rows.device).expand(len(rows))


@isolated
def sample_confidence(
    logits: torch.Tensor,
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
    dtype: torch.dtype = torch.float64,
) -> SampledTokens:
    """Draws a token of each row and scores it.

    Arguments and results are those of `marco_fast.sample_confidence`, in `dtype`. Options are
    float32 values. Of the tokens that the filters keep, in id order, the first is drawn whose
    cumulative mass exceeds u * (mass of all kept); u is `philox_uniform(seed, position)`. top_p
    compares the mass of the tokens ranked before one with top_p * (mass of all V).
    """
    z, status = clean(logits, dtype)
    sampling_t = _per_row(temperature, z, torch.float32)
    greedy = sampling_t < GREEDY_TEMPERATURE
    ranked = _rank(z)
    drawn = _draw(
        z,
        ranked,
        torch.where(greedy, 1.0, sampling_t),
        _per_row(top_p, z, torch.float32),
        _per_row(min_p, z, torch.float32),
        _per_row(sample_top_k, z, torch.int32),
        philox_uniform(seeds, positions),
    )
    token_ids = torch.where(greedy, ranked[:, 0], drawn).masked_fill(status & 4 > 0, -1).int()
    score_t = sampling_t if score == "tempered" else torch.ones_like(sampling_t)
    softmax = softmax_of(z, score_t.to(dtype))
    scored = score_of(z, softmax, ranked[:, :top_k], token_ids, status, denominator == "union")
    weighted = torch.where(softmax.masses > 0, softmax.masses * softmax.shifted, 0.0).sum(-1)
    total = torch.where(softmax.total > 0, softmax.total, 1.0)[:, 0]
    entropy = (softmax.log_total[:, 0] - weighted / total).clamp_min(0.0)
    add_to_paths(scored.confidence, path_sums, path_counts, active)
    return SampledTokens(token_ids, *scored, entropy)


def lm_head_records(
    logits: torch.Tensor, temperature: torch.Tensor, tempered: bool, candidates: int
) -> LMHeadRecords:
    """The records of logits that are the whole vocabulary, [B] float32 temperatures."""
    z, status = clean(logits, torch.float64)
    infs = (z == torch.inf).sum(-1)
    sampling_t = torch.where(temperature < GREEDY_TEMPERATURE, 1.0, temperature).double()
    score_t = temperature.double() if tempered else torch.ones_like(sampling_t)
    scored, drawn = softmax_of(z, score_t), softmax_of(z, sampling_t)
    weighted = torch.where(scored.masses > 0, scored.masses * scored.shifted, 0.0).sum(-1)
    weighted = torch.where(infs > 0, 0.0, weighted * LOG2_E)
    ids = _rank(z)[:, :candidates]
    topk_logits = z.gather(1, ids)
    missing = (0, candidates - ids.shape[1])
    pad = torch.nn.functional.pad
    return LMHeadRecords(
        z.amax(-1),
        torch.stack([scored.total[:, 0], weighted, drawn.total[:, 0]], 1),
        infs,
        status & 1,
        pad(topk_logits, missing, value=-torch.inf),
        pad(torch.where(topk_logits > -torch.inf, ids, -1), missing, value=-1),
        0,
        z.shape[1],
        z.shape[1],
    )


@isolated
@exact_products
def lm_head_confidence(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    round_logits: torch.dtype | None = None,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> SampledTokens:
    """sample_confidence(hidden @ weight.T + bias), the product in `dtype` too.

    Options are those of `sample_confidence`.
    """
    logits = hidden.to(dtype) @ weight.to(dtype).T
    if bias is not None:
        logits = logits + bias.to(dtype)
    if round_logits is not None:
        logits = logits.to(round_logits).to(dtype)
    return sample_confidence(logits, dtype=dtype, **options)
