"""What every launch needs to know: the GPU of its tensors, or that Triton's interpreter runs.

Launchers ask `launch.target_of` for the GPU: what they would launch on another one can be seen by
putting another function in its place.
"""

import contextlib
import functools
from typing import NamedTuple

import torch

from marco_fast.kernels.interpreter import compiled_arithmetic

__all__ = ["Target", "forget_arrivals", "launching", "target_of", "zeroed_arrivals"]

ARRIVALS = 2**18  # of a device: 1 MiB
STREAM_ARRIVALS = 2**11  # more rows than that are never shared by several programs


class Target(NamedTuple):
    """A GPU as the launchers see it.

    Attributes:
        arch: "sm_90", "gfx942" and the like.
        processors: streaming multiprocessors, or compute units.
    """

    arch: str
    processors: int

    @property
    def nvidia(self) -> bool:
        return self.arch.startswith("sm_")


@functools.cache
def target_of(device: torch.device) -> Target:
    """The GPU; of a CPU the interpreter, which takes any tile and runs one program at a time."""
    if device.type != "cuda":
        return Target("sm_90", 1)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        arch = properties.gcnArchName.split(":")[0]
    else:
        arch = f"sm_{properties.major}{properties.minor}"
    return Target(arch, properties.multi_processor_count)


def launching(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Around launches over tensors of `device`: Triton itself takes the current device."""
    if device.type == "cuda":
        return torch.cuda.device(device)
    return compiled_arithmetic()


class Arrivals:
    """Zeros of one device that kernels count in and set back, so that no call has to clear them.

    Calls on one stream follow each other and share theirs. A call inside a CUDA graph has its own
    for good: graphs may be replayed side by side.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.taken = device, 0
        self.zeros = torch.zeros(ARRIVALS, dtype=torch.int32, device=device)
        torch.cuda.current_stream(device).synchronize()  # any stream finds zeros from now on
        self.of_stream: dict[int, torch.Tensor | None] = {}

    def take(self, count: int) -> torch.Tensor | None:
        """Some that nobody has yet; None where too few are left.

        They begin at a multiple of 16 bytes: another alignment would be another specialisation.
        """
        begin = -(-self.taken // 4) * 4
        if begin + count > ARRIVALS:
            return None
        self.taken = begin + count
        return self.zeros[begin : self.taken]

    def on_stream(self, rows: int) -> torch.Tensor | None:
        """Those of the current stream."""
        stream = torch.cuda.current_stream(self.device).cuda_stream
        if stream not in self.of_stream:
            self.of_stream[stream] = self.take(STREAM_ARRIVALS)
        shared = self.of_stream[stream]
        return shared[:rows] if shared is not None and rows <= STREAM_ARRIVALS else None


_arrivals: dict[torch.device, Arrivals] = {}


def forget_arrivals() -> None:
    """Begins anew; for a process that has dropped every graph that it captured."""
    _arrivals.clear()


def zeroed_arrivals(rows: int, device: torch.device) -> torch.Tensor:
    """[rows] int32 zeros for a kernel that leaves zeros behind.

    Nothing is launched for them, except at a device's first call, in a graph that is captured
    before any call outside of one, and once thousands of captured calls have used all there are.
    """
    found = None
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            found = _arrivals[device].take(rows) if device in _arrivals else None
        else:
            if device not in _arrivals:
                _arrivals[device] = Arrivals(device)
            found = _arrivals[device].on_stream(rows)
    if found is None:
        return torch.zeros(rows, dtype=torch.int32, device=device)
    return found
