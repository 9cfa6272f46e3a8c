"""lm_head_records: what one shard of the vocabulary leaves of each row, in two launches."""

from typing import TYPE_CHECKING

from marco_fast.kernels import launch
from marco_fast.kernels.confidence_launch import key_slots, options_of
from marco_fast.kernels.lm_head_launch import DRAW_WARPS, compiler_options, scan, tiles_of
from marco_fast.kernels.lm_head_records_kernels import lm_head_summary_kernel

if TYPE_CHECKING:
    from marco_fast.ops.confidence.options import Head, Sampling
    from marco_fast.ops.reference.confidence import LMHeadRecords

__all__ = ["lm_head_records"]


def lm_head_records(head: "Head", sampling: "Sampling", out: "LMHeadRecords") -> None:
    """Launches the kernels of one shard; arguments as marco_fast.lm_head_records, already checked.

    Args:
        out: its tensors are filled; topk_ids are those inside the shard.

    Raises:
        ValueError: more than 32 candidates.
    """
    rows, candidates = out.topk_ids.shape
    block_k = key_slots(candidates, sample=True)
    if rows == 0:
        return
    arch = launch.target_of(head.hidden.device).arch
    tile, _ = tiles_of(arch, head)
    options = options_of(sampling, candidates, out.top, out.infs)
    with launch.launching(head.hidden.device):
        space, sizes = scan(head, options, out.vocab_size, tile, block_k)
        lm_head_summary_kernel[(rows,)](
            options, out, space, sizes, BLOCK_K=block_k, **compiler_options(arch, DRAW_WARPS)
        )
