"""How a row is drawn and scored: what the launchers pass, and what a row makes of it.

Device code of sample_confidence and of the LM head's kernels. An option is a tensor or a number, as
the caller gave it; both are arguments of one compiled kernel, which sees at run time which it has.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from marco_fast.kernels.confidence_records import rate_of

__all__ = [
    "ALL_IDS",
    "DRAW_CANDIDATES",
    "Draws",
    "Filters",
    "RowOption",
    "RowOptions",
    "SamplingOptions",
    "filters_of",
    "options_of_rows",
]

# How many of the largest a filtered draw looks at before it reads the row again.
DRAW_CANDIDATES = tl.constexpr(16)
ALL_IDS = tl.constexpr(0x7FFFFFFF)
GREEDY_TEMPERATURE = tl.constexpr(1e-5)


class RowOption(NamedTuple):
    """One option: the tensor's element of each row where it is `given`, else the number."""

    ptr: Any  # [B]; not followed where it is not given
    number: Any
    given: Any  # 0 or 1


class SamplingOptions(NamedTuple):
    """The options of a launch."""

    temperature: Any  # RowOption of float32
    top_p: Any  # RowOption of float32
    min_p: Any  # RowOption of float32
    sample_top_k: Any  # RowOption of int32
    tempered: Any  # 0 or 1: scores are those of softmax(logits / temperature)
    include_token: Any  # 0 or 1: the drawn token is in the denominator
    top_k: Any  # how many of the largest are scored


class Draws(NamedTuple):
    """What each row draws by, and the path that its confidence is added to."""

    seeds: Any  # [B] int64
    positions: Any  # [B] int64
    path_sums: Any  # [B] int64, units of 2^-40
    path_counts: Any  # [B] int32
    active: Any  # [B] uint8
    has_sums: Any  # 0 or 1: whether there are path_sums, and so on
    has_counts: Any
    has_active: Any


class RowOptions(NamedTuple):
    """The options of one row, or of each of several, and how it is read because of them."""

    temperature: Any
    top_p: Any
    min_p: Any
    sample_top_k: Any
    greedy: Any
    score_temperature: Any
    rate: Any  # rate_of the temperature that is scored
    sampling_rate: Any  # rate_of the temperature that is drawn at
    own_sums: Any  # whether the draw needs sums at sampling_rate beside those at rate
    capacity: Any  # how many of the largest are kept


class Filters(NamedTuple):
    """Which tokens of a row may be drawn: a token is kept if fewer than `most` are ranked before
    it, their mass is below `target`, and its logit is not below `least`."""

    filtered: Any  # whether anything may be left out
    most: Any  # int32
    target: Any  # float64
    least: Any  # float64
    top_p: Any


@triton.jit
def load_option(
    option,  # RowOption
    row,
    here,
):
    return tl.load(option.ptr + row, mask=here & (option.given != 0), other=option.number)


@triton.jit
def options_of_rows(
    sampling,  # SamplingOptions
    row,
    here,
    vocab_size,
):
    """The RowOptions of one row, or of several of which some are not `here`."""
    temperature = load_option(sampling.temperature, row, here)
    top_p = load_option(sampling.top_p, row, here)
    min_p = load_option(sampling.min_p, row, here)
    sample_top_k = load_option(sampling.sample_top_k, row, here)
    greedy = temperature < GREEDY_TEMPERATURE
    score_temperature = tl.where(sampling.tempered != 0, temperature, 1.0)
    # A draw that reads no total needs no sums of its own: filters by rank or by value alone.
    limited = ((sample_top_k > 0) & (sample_top_k < vocab_size)) | (min_p > 0.0)
    own_sums = (temperature != score_temperature) & ((top_p < 1.0) | (limited == 0)) & (greedy == 0)
    # Unfiltered rows draw by block: fewer candidates enter their keys.
    capacity = tl.maximum(sampling.top_k, DRAW_CANDIDATES)
    capacity = tl.where(limited | (top_p < 1.0), capacity, sampling.top_k)
    return RowOptions(
        temperature,
        top_p,
        min_p,
        sample_top_k,
        greedy,
        score_temperature,
        rate_of(score_temperature),
        rate_of(tl.where(greedy, 1.0, temperature)),
        own_sums,
        capacity,
    )


@triton.jit
def filters_of(
    own,  # RowOptions
    top,
    mass,
    vocab_size,
):
    """The Filters of one row of this mass (float64), which is relative to its largest logit."""
    limited = (own.sample_top_k > 0) & (own.sample_top_k < vocab_size)
    most = tl.where(own.sample_top_k > 0, own.sample_top_k, ALL_IDS)
    target = tl.where(own.top_p < 1.0, own.top_p.to(tl.float64) * mass, float("inf"))
    least = tl.log(tl.where(own.min_p > 0.0, own.min_p, 1.0).to(tl.float64))
    least *= own.temperature.to(tl.float64)
    least = tl.where(own.min_p > 0.0, least + top.to(tl.float64), float("-inf"))
    filtered = limited | (own.top_p < 1.0) | (own.min_p > 0.0)
    return Filters(filtered, most, target, least, own.top_p)
