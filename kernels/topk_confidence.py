"""topk_confidence and sample_confidence: one launch, each logit read once from memory.

This file launches the kernels of confidence_kernels.py: how many programs share a row, and the
workspace between them.
"""

from typing import Any, NamedTuple

import torch
import triton

from marco_fast.kernels import launch
from marco_fast.kernels.confidence_cut import CUT_TILE
from marco_fast.kernels.confidence_draw import (
    DRAW_CANDIDATES,
    HAS_ACTIVE,
    HAS_COUNTS,
    HAS_MIN_P,
    HAS_SAMPLE_TOP_K,
    HAS_SUMS,
    HAS_TEMPERATURE,
    HAS_TOP_P,
)
from marco_fast.kernels.confidence_kernels import (
    sample_confidence_kernel,
    topk_confidence_kernel,
)
from marco_fast.kernels.online_softmax import CHUNK, RECORD_FIELDS

__all__ = ["Workspace", "make_workspace", "sample_confidence", "topk_confidence"]

MOST_KEYS = 32  # of a program, in registers
NUM_WARPS = 8  # also the shape of every sum: another number would change the last bits


class Workspace(NamedTuple):
    """What the programs of a row pass to each other.

    A call leaves the tickets at 0, so the same memory serves the next call of the same shape on the
    same stream.
    """

    records: torch.Tensor  # [B, RECORD_FIELDS, chunks] float32
    keys: torch.Tensor  # [B, splits, BLOCK_K] int64
    tickets: torch.Tensor  # [B] int32, zero
    cut_keys: torch.Tensor  # [B, CUT_TILE] int32


def make_workspace(logits: torch.Tensor, block_k: int, splits: int, sample: bool) -> Workspace:
    """Memory for one call; only the tickets are set."""
    rows, device = len(logits), logits.device
    chunks = triton.cdiv(logits.shape[1], CHUNK.value)
    sizes = (rows, RECORD_FIELDS.value, chunks), (rows, splits, block_k)
    # A row of one program has no use for its ticket.
    if splits > 1:
        tickets = launch.zeroed_tickets(rows, device)
    else:
        tickets = torch.empty(rows, dtype=torch.int32, device=device)
    return Workspace(
        torch.empty(sizes[0], dtype=torch.float32, device=device),
        torch.empty(sizes[1], dtype=torch.int64, device=device),
        tickets,
        torch.empty((rows if sample else 0, CUT_TILE.value), dtype=torch.int32, device=device),
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


def split_of(rows: int, chunks: int, processors: int) -> tuple[int, int]:
    """(splits, chunks a split): four programs a processor, and no split without a chunk.

    Not measured: two or three programs fit on a processor, and a second wave evens out the rest.
    """
    wanted = min(chunks, max(1, 4 * processors // rows))
    chunks_per_split = triton.cdiv(chunks, wanted)
    return triton.cdiv(chunks, chunks_per_split), chunks_per_split


def launch_options(
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


Pointers = tuple[torch.Tensor, ...]
Numbers = tuple[float | int, ...]


def option_arguments(
    sampling: Any, floats: torch.Tensor, ints: torch.Tensor
) -> tuple[Pointers, Numbers]:
    """The four options of a Sampling as kernels take them: the pointers, and then the numbers and
    `given`, the bits of those that are pointers.

    Args:
        floats, ints: a float32 and an int32 tensor, which stand where there is no pointer (it would
            have another type) and are never followed.
    """
    pointers, numbers, given = [], [], 0
    bits = (HAS_TEMPERATURE, HAS_TOP_P, HAS_MIN_P, HAS_SAMPLE_TOP_K)
    for option, bit, spare in zip(sampling[:4], bits, (*[floats] * 3, ints), strict=True):
        there = isinstance(option, torch.Tensor)
        given |= bit.value if there else 0
        pointers.append(option if there else spare)
        numbers.append(int(spare is not ints) if there else option)
    return tuple(pointers), (*map(float, numbers[:3]), numbers[3], given)


def draw_arguments(
    sampling: Any, floats: torch.Tensor, ints: torch.Tensor
) -> tuple[Pointers, Numbers]:
    """The same of a whole Sampling."""
    options, numbers = option_arguments(sampling, floats, ints)
    given = int(numbers[-1])
    seeds, positions, sums, counts, active = sampling[4:]
    for tensor, bit in ((sums, HAS_SUMS), (counts, HAS_COUNTS), (active, HAS_ACTIVE)):
        given |= bit.value if tensor is not None else 0
    paths = (
        seeds if sums is None else sums,
        ints if counts is None else counts,
        (ints if active is None else active).view(torch.uint8),
    )
    return (*options, seeds, positions, *paths), (*numbers[:-1], given)


def topk_confidence(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    temperature: float,
    union: bool,
    *outputs: torch.Tensor,
    splits: tuple[int, int] | None = None,
    workspace: Workspace | None = None,
) -> None:
    """Launches the kernel; arguments as marco_fast.topk_confidence, already checked.

    Args:
        outputs: the fields of TopKConfidence, in order.
        splits: (splits, chunks a split) in place of split_of's.
        workspace: memory of a call of the same shape.

    Raises:
        ValueError: top_k above 32.
    """
    rows, vocab = logits.shape
    chunks, top_k = triton.cdiv(vocab, CHUNK.value), outputs[3].shape[1]
    block_k = key_slots(top_k, sample=False)
    if rows == 0:
        return
    target = launch.target_of(logits.device)
    splits = splits or split_of(rows, chunks, target.processors)
    with launch.launching(logits.device):
        space = workspace or make_workspace(logits, block_k, splits[0], sample=False)
        topk_confidence_kernel[(rows * splits[0],)](
            logits, token_ids, *outputs, space.records, space.keys, space.tickets, logits.stride(0),
            temperature, vocab, chunks, *splits, top_k, int(union), BLOCK_K=block_k,
            **launch_options(target, logits, block_k, sample=False),
        )  # fmt: skip


def sample_confidence(
    logits: torch.Tensor,
    sampling: Any,
    tempered: bool,
    union: bool,
    *outputs: torch.Tensor,
    splits: tuple[int, int] | None = None,
    workspace: Workspace | None = None,
) -> None:
    """Launches the kernel; arguments as marco_fast.sample_confidence, already checked.

    Args:
        sampling: a marco_fast.ops.confidence.sample.Sampling.
        outputs: the fields of SampledTokens, in order.
        splits: (splits, chunks a split) in place of split_of's.
        workspace: memory of a call of the same shape.

    Raises:
        ValueError: top_k above 32.
    """
    rows, vocab = logits.shape
    chunks, top_k = triton.cdiv(vocab, CHUNK.value), outputs[4].shape[1]
    block_k = key_slots(top_k, sample=True)
    if rows == 0:
        return
    target = launch.target_of(logits.device)
    splits = splits or split_of(rows, chunks, target.processors)
    pointers, numbers = draw_arguments(sampling, outputs[1], outputs[0])
    with launch.launching(logits.device):
        space = workspace or make_workspace(logits, block_k, splits[0], sample=True)
        sample_confidence_kernel[(rows * splits[0],)](
            logits, *pointers, *outputs, *space, logits.stride(0), *numbers, vocab, chunks, *splits,
            top_k, int(union), int(tempered), BLOCK_K=block_k,
            **launch_options(target, logits, block_k, sample=True),
        )  # fmt: skip
