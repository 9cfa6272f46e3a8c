"""A tree attention plan as tensors and integers, and back: how it crosses an operator's border.

A plan is a Python object, which a compiled graph cannot hold. Its arrays can be inputs of one: on a
CPU those of the plan itself, on a CUDA device the ones that the kernels read there.
"""

from collections.abc import Sequence
from typing import Any

import torch

from marco_fast.errors import BackendError
from marco_fast.ops.attention.checks import check_heads
from marco_fast.ops.attention.native_plan import plan_of_arrays
from marco_fast.ops.attention.plan import TreeAttentionPlan
from marco_fast.ops.attention.work_items import HEADER_WORDS, SECTIONS, TreeItems, chunk_tokens
from marco_fast.ops.backends import interpreting
from marco_fast.ops.reference.packed_plan import PLAN_ARRAYS

__all__ = ["plan_arguments", "restore_plan"]

SIZES = ("num_heads", "num_kv_heads", "head_dim", "page_size")
ITEM_ARRAYS = ("counts", *SECTIONS)
ITEM_SIZES = ("num_items", "num_merges", "num_partials", "tile_rows", "chunk_tokens")
_INT32 = torch.int32
_CPU = torch.device("cpu")


def plan_arguments(plan: TreeAttentionPlan) -> tuple[list[torch.Tensor], list[int]]:
    """The plan as the arguments `plan` and `sizes` of torch.ops.marco_fast.tree_attention.

    Returns:
        For a CPU the arrays of PLAN_ARRAYS, and the plan's num_heads, num_kv_heads, head_dim and
        page_size; for a CUDA device the arrays of its TreeItems, and after those four numbers the
        pages that the cache must have and the sizes of a launch. All arrays are int32 and share the
        plan's memory: `plan.advance` is seen through them, and on a CUDA device `plan.update` too
        (the rows of out beyond its queries then hold nothing).
    """
    if plan.device.type == "cuda":
        return item_arguments(plan, plan.device)
    arrays = [torch.from_numpy(getattr(plan.native, name)) for name in PLAN_ARRAYS]
    return arrays, [getattr(plan, name) for name in SIZES]


def item_arguments(
    plan: TreeAttentionPlan, device: torch.device
) -> tuple[list[torch.Tensor], list[int]]:
    """The second form of plan_arguments, for the Triton kernels on any device."""
    items = plan.items(device)
    sizes = [getattr(plan, name) for name in SIZES]
    sizes += [plan.native.num_pages_needed, *(getattr(items, name) for name in ITEM_SIZES)]
    return [getattr(items, name) for name in ITEM_ARRAYS], sizes


def restore_plan(arrays: Sequence[torch.Tensor], sizes: Sequence[int]) -> TreeAttentionPlan:
    """A plan that attends as the one did that `plan_arguments` was given.

    Arrays on a CPU are copied, and everything in them is checked, so that no list makes a kernel
    read what is not there. Of those on a CUDA device the lengths alone are checked: to look into
    them would wait for it.

    Args:
        arrays, sizes: as plan_arguments returns them.

    Raises:
        ValueError: they are not those of a plan.
        IndexError: one of the arrays holds an id that is out of range.
    """
    if (len(arrays), len(sizes)) == (11, 10) and (not arrays[0].is_cpu or interpreting()):
        return _DevicePlan(arrays, sizes)
    if (len(arrays), len(sizes)) != (10, 4):
        raise ValueError(
            "expected a plan's 10 arrays and 4 sizes on a CPU, or 11 and 10 on a CUDA device, got "
            f"{len(arrays)} and {len(sizes)}"
        )
    _check_form(arrays, _CPU)
    heads = _heads(sizes)
    native = plan_of_arrays([array.numpy() for array in arrays], heads["page_size"])
    return TreeAttentionPlan(native, arrays[0].shape[0], max_new_tokens=0, device=_CPU, **heads)


class _DevicePlan(TreeAttentionPlan):
    """A plan of which nothing but the arrays for the Triton kernels is at hand."""

    __slots__ = ("_given",)

    def __init__(self, arrays: Sequence[torch.Tensor], sizes: Sequence[int]) -> None:
        device = arrays[0].device
        _check_form(arrays, device)
        heads = _heads(sizes)
        given: dict[str, Any] = dict(zip(ITEM_ARRAYS, arrays, strict=True))
        given |= zip(ITEM_SIZES, sizes[len(SIZES) + 1 :], strict=True)
        self._given = TreeItems(**given)
        _check_items(self._given, heads["head_dim"])
        super().__init__(
            _OnDevice(sizes[len(SIZES)]),
            self._given.query_order.shape[0],
            max_new_tokens=0,
            device=device,
            **heads,
        )

    def items(self, device: torch.device) -> TreeItems:
        if device != self._given.counts.device:
            raise ValueError(f"expected a plan on {device}, got {self._given.counts.device}")
        return self._given


class _OnDevice:
    """In the place of a plan's arrays on the host."""

    def __init__(self, num_pages_needed: int) -> None:
        self.num_pages_needed = num_pages_needed

    def __getattr__(self, name: str) -> Any:
        raise BackendError(f"only Triton kernels read a plan's arrays on a device: no {name} here")


def _check_form(arrays: Sequence[torch.Tensor], device: torch.device) -> None:
    for array in arrays:
        if array.dtype != _INT32 or array.dim() != 1 or array.device != device:
            raise ValueError(
                f"expected a plan's arrays as 1-D int32 tensors on {device}, got "
                f"{array.dtype} {list(array.shape)} on {array.device}"
            )


def _heads(sizes: Sequence[int]) -> dict[str, int]:
    heads = dict(zip(SIZES, sizes, strict=False))
    if min(heads.values()) < 1 or max(heads.values()) >= 2**31:
        raise ValueError(f"expected the sizes of a plan in 1..2^31 - 1, got {heads}")
    check_heads(heads["num_heads"], heads["num_kv_heads"], heads["head_dim"])
    return heads


def _check_items(items: TreeItems, head_dim: int) -> None:
    lengths = {name: getattr(items, name).shape[0] for name in ITEM_ARRAYS}
    queries, segments = lengths["query_order"], lengths["segment_lens"]
    fit = (
        lengths["counts"] == HEADER_WORDS
        and lengths["query_lens"] == queries
        and lengths["partial_begin"] == queries + 1
        and lengths["own_end"] == segments
        and lengths["page_begin"] == segments + 1
        and 0 <= 6 * items.num_items <= lengths["items"]
        and 0 <= items.num_merges <= lengths["merges"]
        and items.num_partials >= 0
        and items.tile_rows in (16, 32, 64)
        and items.chunk_tokens == chunk_tokens(head_dim)
        and all(getattr(items, name).is_contiguous() for name in ITEM_ARRAYS)
    )
    if not fit:
        raise ValueError(f"expected the arrays of a plan on a device, got {lengths}")
