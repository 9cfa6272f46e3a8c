"""A tree attention plan as one int32 tensor, and back: how it crosses an operator's border.

A plan is a Python object, which a compiled graph cannot hold. A packed plan can be an input of one:
a header, the plan's arrays and their work items, laid out the same on a CPU and on a CUDA device
(ops/reference/work_items.py).
"""

from collections.abc import Sequence
from typing import Any

import torch

from marco_fast.errors import BackendError
from marco_fast.ops.attention.checks import check_heads
from marco_fast.ops.attention.plan import TreeAttentionPlan
from marco_fast.ops.attention.work_items import WorkItems, chunk_tokens, sections_of
from marco_fast.ops.backends import built, interpreting
from marco_fast.ops.isolation import isolated
from marco_fast.ops.reference.plan import PLAN_ARRAYS
from marco_fast.ops.reference.plan import plan_of_arrays as arrays_by_reference
from marco_fast.ops.reference.work_items import (
    COUNTS,
    HEADER_WORDS,
    MAGIC,
    VERSION,
    Sizes,
    section_words,
)
from marco_fast.ops.tensors import tensor_of

__all__ = ["launch_sizes", "packed_plan", "restore_plan"]

if built():
    from marco_fast import _C

    _plan_of_arrays: Any = _C.tree_plan_of_arrays
else:
    _plan_of_arrays = arrays_by_reference


def packed_plan(plan: TreeAttentionPlan) -> torch.Tensor:
    """The argument `plan` of torch.ops.marco_fast.tree_attention.

    Returns:
        One int32 tensor on the plan's device, the same at every call for one plan: `advance` and
        `update` change it in place. After an `update`, rows of out from the plan's queries on hold
        nothing.
    """
    return plan.items(plan.device).packed


def launch_sizes(plan: TreeAttentionPlan) -> list[int]:
    """The argument `launch` of torch.ops.marco_fast.tree_attention.

    Returns:
        [] for a CPU; for a CUDA device the Sizes of the packed plan: how many programs run and
        where its sections begin. They are in its header too, but to read them there would wait for
        the device, and would not be possible while a CUDA graph is captured.
    """
    return [*plan.items(plan.device).sizes] if plan.device.type == "cuda" else []


@isolated
def restore_plan(packed: torch.Tensor, launch: Sequence[int] = ()) -> TreeAttentionPlan:
    """A plan that attends as the one did that `packed_plan` was given.

    On a CPU the plan's arrays are copied and everything in them is checked, so that no tensor makes
    a kernel read what is not there; work items are made again where a kernel needs them. On a CUDA
    device only the sizes are checked: to look into the tensor would wait for the device.

    Args:
        packed, launch: as packed_plan and launch_sizes return them.

    Raises:
        ValueError: they are not those of a plan.
        IndexError: an array of the plan holds an id that is out of range.
    """
    if packed.dtype != torch.int32 or packed.dim() != 1:
        raise ValueError(
            f"expected a packed plan as a 1-D int32 tensor, got {packed.dtype} "
            f"{list(packed.shape)} on {packed.device}"
        )
    if launch and (not packed.is_cpu or interpreting()):
        return _DevicePlan(tensor_of("the packed plan", packed), launch)
    if launch or not packed.is_cpu:
        raise ValueError(
            "expected a packed plan on a CPU without launch sizes, or on a CUDA device with them, "
            f"got {packed.device} with {len(launch)}"
        )
    packed = tensor_of("the packed plan", packed)
    header = packed[:HEADER_WORDS].tolist()
    if len(header) < HEADER_WORDS or header[:2] != [MAGIC, VERSION]:
        raise ValueError(
            f"expected a packed plan, which begins with {MAGIC}, {VERSION}, got {header[:2]}"
        )
    sizes, room = Sizes(*header[2:16]), header[16 : 16 + len(COUNTS)]
    _check_sizes(sizes, room, len(packed))
    sections = sections_of(packed, sizes._replace(**dict(zip(COUNTS, room, strict=True))))
    words = section_words(sizes[-len(COUNTS) :])
    held = zip(sections[1 : 1 + len(PLAN_ARRAYS)], words, strict=False)
    arrays = _plan_of_arrays([view[:n].numpy() for view, n in held], sizes.page_size)
    if arrays.num_pages_needed != sizes.num_pages_needed:
        raise ValueError(
            f"expected num_pages_needed = {arrays.num_pages_needed} in the packed plan, got "
            f"{sizes.num_pages_needed}"
        )
    return TreeAttentionPlan(
        arrays, sizes.queries, sizes[:4], max_new_tokens=0, device=torch.device("cpu")
    )


class _DevicePlan(TreeAttentionPlan):
    """A plan rebuilt from a packed plan on a device, which only the Triton kernels read."""

    __slots__ = ("_given",)

    def __init__(self, packed: torch.Tensor, launch: Sequence[int]) -> None:
        if len(launch) != len(Sizes._fields) or not packed.is_contiguous():
            raise ValueError(
                f"expected a contiguous packed plan and {len(Sizes._fields)} launch sizes, got "
                f"strides {packed.stride()} and {len(launch)}"
            )
        sizes = Sizes(*launch)
        _check_sizes(sizes, sizes[-len(COUNTS) :], len(packed))
        self._given = WorkItems(packed, sizes, sections_of(packed, sizes))
        super().__init__(
            _OnDevice(sizes.num_pages_needed),
            sizes.queries,
            sizes[:4],
            max_new_tokens=0,
            device=packed.device,
        )

    def items(self, device: torch.device) -> WorkItems:
        if device != self._given.packed.device:
            raise ValueError(f"expected a plan on {device}, got {self._given.packed.device}")
        return self._given


class _OnDevice:
    """Stands in for a plan's arrays on the host, which a plan rebuilt on a device does not have."""

    def __init__(self, num_pages_needed: int) -> None:
        self.num_pages_needed = num_pages_needed

    def __getattr__(self, name: str) -> Any:
        raise BackendError(f"only Triton kernels read a plan's arrays on a device: no {name} here")


def _check_sizes(sizes: Sizes, room: Sequence[int], words: int) -> None:
    """Raises ValueError unless a tensor of so many words can hold a plan of these sizes."""
    if min(sizes[:4]) < 1 or min(sizes) < 0 or max(sizes) >= 2**31:
        raise ValueError(f"expected the sizes of a packed plan in 0..2^31 - 1, got {sizes}")
    check_heads(sizes.num_heads, sizes.num_kv_heads, sizes.head_dim)
    needed = HEADER_WORDS + sum(each + -each % 4 for each in section_words(room))
    fit = (
        all(0 <= count <= most for count, most in zip(sizes[-len(COUNTS) :], room, strict=True))
        and needed == words
        and sizes.tile_query_heads in (16, 32)
        and sizes.chunk_tokens == chunk_tokens(sizes.head_dim)
    )
    if not fit:
        raise ValueError(
            f"expected a packed plan of {needed} words with room for {list(room)}, got {words} "
            f"words and {sizes}"
        )
