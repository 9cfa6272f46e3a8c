"""topk_confidence and sample_confidence: one launch, each logit read once from memory.

This file launches the kernels of confidence_kernels.py: how many programs share a row, the
workspace between them, and every variant that may be launched.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton

from marco_fast.kernels.confidence_cut import CUT_TILE
from marco_fast.kernels.confidence_draw import DRAW_CANDIDATES
from marco_fast.kernels.confidence_kernels import (
    sample_confidence_kernel,
    topk_confidence_kernel,
)
from marco_fast.kernels.interpreter import launching
from marco_fast.kernels.online_softmax import CHUNK, RECORD_FIELDS
from marco_fast.kernels.variants import Variant, pointer_type

__all__ = ["Workspace", "make_workspace", "sample_confidence", "topk_confidence", "variants"]

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
    # A row of one program has no use for its ticket, so large batches need no second launch.
    tickets = torch.zeros if splits > 1 else torch.empty
    return Workspace(
        torch.empty(sizes[0], dtype=torch.float32, device=device),
        torch.empty(sizes[1], dtype=torch.int64, device=device),
        tickets(rows, dtype=torch.int32, device=device),
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


def launch_options(sample: bool, nvidia: bool) -> dict[str, int]:
    """num_warps, and the registers of a thread with which three (scoring) or two (sampling)
    programs fit on a multiprocessor; compiled for sm_80 and sm_90 neither spills."""
    options = {"num_warps": NUM_WARPS}
    if nvidia:
        options["maxnreg"] = 128 if sample else 80
    return options


def processors_of(device: torch.device) -> int:
    """Streaming multiprocessors, or compute units; of the interpreter, one."""
    if device.type == "cpu":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def sampling_pointers(
    sampling: Any, token_ids: torch.Tensor
) -> tuple[tuple[torch.Tensor, ...], int]:
    """What a kernel that draws takes of a Sampling, in its order, and which of the last three are
    there (bits: 1 sums, 2 counts, 4 active). Others are never followed: they only have a type."""
    *rows, sums, counts, active = sampling
    paths = (sums is not None) + 2 * (counts is not None) + 4 * (active is not None)
    sums = sampling.seeds if sums is None else sums
    counts = sampling.sample_top_k if counts is None else counts
    flags = (token_ids if active is None else active).view(torch.uint8)
    return (*rows, sums, counts, flags), paths


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
    splits = splits or split_of(rows, chunks, processors_of(logits.device))
    space = workspace or make_workspace(logits, block_k, splits[0], sample=False)
    with launching(logits.device):
        topk_confidence_kernel[(rows * splits[0],)](
            logits, token_ids, *outputs, space.records, space.keys, space.tickets, logits.stride(0),
            temperature, vocab, chunks, *splits, top_k, int(union), BLOCK_K=block_k,
            **launch_options(False, torch.version.hip is None),
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
        sampling: a marco_fast.ops.confidence.Sampling.
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
    splits = splits or split_of(rows, chunks, processors_of(logits.device))
    space = workspace or make_workspace(logits, block_k, splits[0], sample=True)
    pointers, paths = sampling_pointers(sampling, outputs[0])
    with launching(logits.device):
        sample_confidence_kernel[(rows * splits[0],)](
            logits, *pointers, *outputs, *space, logits.stride(0), vocab, chunks, *splits, top_k,
            int(union), int(tempered), paths, BLOCK_K=block_k,
            **launch_options(True, torch.version.hip is None),
        )  # fmt: skip


def variants(arch: str) -> Iterator[Variant]:
    """What both launchers may choose; the same on every architecture but for the registers."""
    nvidia, aligned = arch.startswith("sm_"), ("stride_logits_row",)
    for dtype in ("float32", "bfloat16", "float16"):
        for block_k in sorted({key_slots(k, sample=False) for k in (1, MOST_KEYS)}):
            for ids in ("i32", "i64"):
                yield Variant(
                    f"topk_confidence {dtype} k{block_k} ids {ids}",
                    topk_confidence_kernel,
                    types_of(topk_confidence_kernel, dtype) | {"token_ids_ptr": f"*{ids}"},
                    {"BLOCK_K": block_k},
                    launch_options(False, nvidia),
                    aligned,
                )
        for block_k in sorted({key_slots(k, sample=True) for k in (1, MOST_KEYS)}):
            yield Variant(
                f"topk_confidence sample {dtype} k{block_k}",
                sample_confidence_kernel,
                types_of(sample_confidence_kernel, dtype),
                {"BLOCK_K": block_k},
                launch_options(True, nvidia),
                aligned,
            )


def types_of(
    kernel: triton.JITFunction, dtype: str, others: dict[str, str] | None = None
) -> dict[str, str]:
    """The parameters' types; integers without a mention are int32, pointers float32."""
    types = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in kernel.arg_names}
    for name in ("sample_top_k", "path_counts", "token_ids", "topk_ids", "status", "tickets"):
        types[f"{name}_ptr"] = "*i32"
    for name in ("seeds", "positions", "path_sums", "keys"):
        types[f"{name}_ptr"] = "*i64"
    types |= {
        "logits_ptr": pointer_type(dtype),
        "cut_keys_ptr": "*i32",
        "active_ptr": "*u8",
        "temperature": "fp32",
        "stride_logits_row": "i64",
        "BLOCK_K": "constexpr",
    }
    types |= others or {}
    return {name: types[name] for name in kernel.arg_names}
