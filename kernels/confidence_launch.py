"""What topk_confidence and sample_confidence launch with: how many programs share a row, the
workspace between them, and the checked options as kernels take them."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton

from marco_fast.kernels import launch
from marco_fast.kernels.confidence_cut import CUT_TILE
from marco_fast.kernels.confidence_options import DRAW_CANDIDATES, Draws, RowOption, SamplingOptions
from marco_fast.kernels.confidence_records import RECORD_FIELDS, VOCAB_BLOCK
from marco_fast.kernels.confidence_scan import Shares

if TYPE_CHECKING:
    from marco_fast.ops.confidence.options import Sampling

__all__ = [
    "Workspace",
    "compiler_options",
    "draws_of",
    "key_slots",
    "make_workspace",
    "options_of",
    "shares_of",
]

MOST_KEYS = 32  # of a program, in registers
NUM_WARPS = 8  # also the shape of every sum: another number would change the last bits


class Workspace(NamedTuple):
    """What the programs of a row pass to each other.

    A call leaves the arrivals at 0, so the same memory serves the next call of the same shape on
    the same stream.
    """

    records: torch.Tensor  # [B, RECORD_FIELDS, blocks] float32
    keys: torch.Tensor  # [B, splits, BLOCK_K] int64
    arrivals: torch.Tensor  # [B] int32, zero
    cut_keys: torch.Tensor | None  # [B, CUT_TILE] int32; None: nothing is drawn


def make_workspace(logits: torch.Tensor, block_k: int, splits: int, sample: bool) -> Workspace:
    """Memory for one call; only the arrivals are set."""
    rows, device = len(logits), logits.device
    records = (rows, RECORD_FIELDS.value, triton.cdiv(logits.shape[1], VOCAB_BLOCK.value))
    # A row of one program counts no arrivals.
    if splits > 1:
        arrivals = launch.zeroed_arrivals(rows, device)
    else:
        arrivals = torch.empty(rows, dtype=torch.int32, device=device)
    cut_keys = None
    if sample:
        cut_keys = torch.empty((rows, CUT_TILE.value), dtype=torch.int32, device=device)
    return Workspace(
        torch.empty(records, dtype=torch.float32, device=device),
        torch.empty((rows, splits, block_k), dtype=torch.int64, device=device),
        arrivals,
        cut_keys,
    )


def key_slots(top_k: int, sample: bool) -> int:
    """BLOCK_K: the k largest, and what a draw looks at; few sizes, as each is compiled.

    Raises:
        ValueError: more keys than fit in registers.
    """
    if top_k > MOST_KEYS:
        raise ValueError(f'expected top_k <= {MOST_KEYS} for backend "triton", got {top_k}')
    if sample:
        return DRAW_CANDIDATES.value if top_k <= DRAW_CANDIDATES.value else MOST_KEYS
    return 8 if top_k <= 8 else MOST_KEYS


def shares_of(rows: int, vocab_size: int, processors: int) -> Shares:
    """Four programs per processor, and no split without a block.

    Not measured: two or three programs fit on a processor, and a second wave evens out the rest.
    """
    blocks = triton.cdiv(vocab_size, VOCAB_BLOCK.value)
    wanted = min(blocks, max(1, 4 * processors // rows))
    blocks_per_split = triton.cdiv(blocks, wanted)
    return Shares(blocks, triton.cdiv(blocks, blocks_per_split), blocks_per_split)


def compiler_options(
    target: launch.Target, logits: torch.Tensor, block_k: int, sample: bool
) -> dict[str, int]:
    """num_warps, and the registers of a thread with which three (scoring) or two (sampling)
    programs fit on a multiprocessor. Rows that are loaded a number at a time need more to score,
    many keys to sample; so compiled for sm_80 and sm_90 nothing spills."""
    options = {"num_warps": NUM_WARPS}
    if target.nvidia and sample:
        options["maxnreg"] = 128 if block_k <= DRAW_CANDIDATES.value else 152
    elif target.nvidia:
        wide = all(n % 16 == 0 for n in (logits.data_ptr(), logits.stride(0), logits.shape[1]))
        options["maxnreg"] = 80 if wide else 96
    return options


def options_of(
    sampling: "Sampling", top_k: int, floats: torch.Tensor, ints: torch.Tensor
) -> SamplingOptions:
    """The options of a launch.

    Args:
        floats, ints: a float32 and an int32 tensor, which stand where an option has no tensor (a
            pointer of another type would be another kernel) and are never followed.
    """

    def option(value: Any, spare: torch.Tensor) -> RowOption:
        if isinstance(value, torch.Tensor):
            return RowOption(value, 0 if spare is ints else 0.0, 1)
        return RowOption(spare, value, 0)

    return SamplingOptions(
        option(sampling.temperature, floats),
        option(sampling.top_p, floats),
        option(sampling.min_p, floats),
        option(sampling.sample_top_k, ints),
        int(sampling.tempered),
        int(sampling.include_token),
        top_k,
    )


def draws_of(sampling: "Sampling", ints: torch.Tensor) -> Draws:
    """What the rows of a launch draw by; `ints` as of options_of."""
    path_sums, path_counts, active = sampling.path_sums, sampling.path_counts, sampling.active
    return Draws(
        sampling.seeds,
        sampling.positions,
        sampling.seeds if path_sums is None else path_sums,
        ints if path_counts is None else path_counts,
        (ints if active is None else active).view(torch.uint8),
        int(path_sums is not None),
        int(path_counts is not None),
        int(active is not None),
    )
