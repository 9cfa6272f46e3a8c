"""lm_head_confidence: its launches, and the library's product for large batches.

The device code is lm_head_confidence_kernels.py. Nothing here waits for the device.
"""

from typing import TYPE_CHECKING

import torch
import triton

from marco_fast.kernels import launch, sample_confidence
from marco_fast.kernels.confidence_cut import CUT_TILE
from marco_fast.kernels.confidence_launch import draws_of, key_slots, options_of
from marco_fast.kernels.confidence_records import RECORD_FIELDS, VOCAB_BLOCK, LogitsRow
from marco_fast.kernels.lm_head_confidence_kernels import (
    Scratch,
    Wanted,
    lm_head_draw_kernel,
    lm_head_logits_kernel,
)
from marco_fast.kernels.lm_head_launch import (
    DRAW_WARPS,
    Tile,
    compiler_options,
    epilogue_of,
    operand,
    scan,
    strides_of,
    tiles_of,
)

if TYPE_CHECKING:
    from marco_fast.ops.confidence.options import Head, Sampling
    from marco_fast.ops.reference.confidence import SampledTokens

__all__ = ["lm_head_confidence"]

# By arithmetic, not measured: with a second tile of rows the weights go through the L2 cache twice,
# which takes longer than to write and read logits beside a library's larger tiles.
MOST_ROWS = 64
PRODUCT_ROWS = 256  # of a library's product: 150 MB of logits at a time


def lm_head_confidence(
    head: "Head",
    sampling: "Sampling",
    out: "SampledTokens",
    *,
    tiles: tuple[Tile, Tile] | None = None,
    splits: int | None = None,
) -> None:
    """Launches the kernels; arguments as marco_fast.lm_head_confidence, already checked.

    Args:
        out: filled.
        tiles: in place of those of tiles_of; then also batches above MOST_ROWS go through them.
        splits: how many programs share the vocabulary, in place of two per multiprocessor.

    Raises:
        ValueError: top_k above 32.
    """
    rows = len(head.hidden)
    key_slots(out.topk_ids.shape[1], sample=True)
    if rows > MOST_ROWS and tiles is None:
        draw_from_product(head, sampling, out)
    elif rows > 0:
        with launch.launching(head.hidden.device):
            draw_from_tiles(head, sampling, out, tiles, splits)


def draw_from_tiles(
    head: "Head",
    sampling: "Sampling",
    out: "SampledTokens",
    tiles: tuple[Tile, Tile] | None,
    splits: int | None,
) -> None:
    """Without the logits in memory, but for those that a draw needs again."""
    rows, vocab_size, device = len(head.hidden), len(head.weight), head.hidden.device
    arch, top_k = launch.target_of(device).arch, out.topk_ids.shape[1]
    tile, again = tiles or tiles_of(arch, head)
    block_k = key_slots(top_k, sample=True)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    wanted = Wanted(empty(rows, dtype=torch.int32), empty(rows))
    logits = LogitsRow(empty(rows, vocab_size), vocab_size)  # written only where a row wants it
    scratch = Scratch(
        empty(rows, RECORD_FIELDS.value, triton.cdiv(vocab_size, VOCAB_BLOCK.value)),
        empty(rows, CUT_TILE.value, dtype=torch.int32),
    )
    options = options_of(sampling, top_k, out.confidence, out.token_ids)
    draws = draws_of(sampling, out.token_ids)
    space, sizes = scan(head, options, vocab_size, tile, block_k, splits)

    def draw(late: bool) -> None:
        lm_head_draw_kernel[(rows,)](
            options, draws, out, space, wanted, logits, scratch, sizes, LATE=late,
            BLOCK_K=block_k, **compiler_options(arch, DRAW_WARPS),
        )  # fmt: skip

    draw(late=False)
    sizes_again = sizes._replace(batch_tiles=triton.cdiv(rows, again.block_b))
    lm_head_logits_kernel[(sizes_again.batch_tiles * sizes.vocab_tiles,)](
        operand(head.hidden, again.block_b, again), operand(head.weight, again.block_v, again),
        strides_of(head), epilogue_of(head, wanted.bounds), space, wanted, logits, sizes_again,
        BLOCK_V=again.block_v, BLOCK_B=again.block_b, BLOCK_H=again.block_h,
        DESCRIPTORS=again.descriptors, **compiler_options(arch, again.warps, again.stages),
    )  # fmt: skip
    draw(late=True)


def draw_from_product(head: "Head", sampling: "Sampling", out: "SampledTokens") -> None:
    """From logits in memory, PRODUCT_ROWS rows of them at a time."""
    for begin in range(0, len(head.hidden), PRODUCT_ROWS):
        part = slice(begin, begin + PRODUCT_ROWS)
        sample_confidence.sample_confidence(
            product(head._replace(hidden=head.hidden[part])),
            sampling.of_rows(part),
            type(out)(*(each[part] for each in out)),
        )


def product(head: "Head") -> torch.Tensor:
    """Logits [rows, V] by the library, summed in float32."""
    hidden, weight = head.hidden, head.weight
    if hidden.is_cuda and hidden.dtype != torch.float32:
        logits = torch.mm(hidden, weight.T, out_dtype=torch.float32)
    else:
        logits = hidden.float() @ weight.float().T
    if head.bias is not None:
        logits += head.bias
    return logits.to(head.round_logits)
