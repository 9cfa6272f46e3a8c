"""The GPU as the parts of the run see it: what it is, how fast it reads, how long calls take.

The same code serves three modes. "gpu" measures. "dry" rehearses on a CPU, in Triton's interpreter
and on tiny shapes: its times mean nothing, but every line runs once. "record" takes the shapes of a
GPU and memory that is never touched, so that bench/gpu/launches.py sees the launches.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch

from bench.common.machine import describe, output_of

__all__ = ["CaptureFailed", "Case", "Machine", "Timing"]

Call = Callable[[], object]

TURN = 1e-3  # least seconds of a graph
WARM = 0.02  # seconds of replays before the timed ones
LAUNCH_CYCLES = 100_000  # clock cycles of the GPU: longer than the launch of a graph


class Case(NamedTuple):
    """One row of a part: its name, and the function that returns the other fields (or fails)."""

    name: str
    run: Callable[[], dict]


class CaptureFailed(RuntimeError):
    """A CUDA graph could not be captured: PyTorch's generator is unusable from then on."""


@dataclass
class Timing:
    """Seconds per call in each round, and how the calls were launched."""

    seconds: list[float]
    captured: bool  # replayed from a CUDA graph; else launched one by one, host work included

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def summary(self) -> dict[str, object]:
        """Microseconds: median, smallest, largest."""
        return {
            "us": self.median * 1e6,
            "us_low": min(self.seconds) * 1e6,
            "us_high": max(self.seconds) * 1e6,
            "captured": self.captured,
        }


@dataclass
class Machine:
    """Where the parts run.

    Attributes:
        mode: "gpu", "dry" or "record".
        deadline: time.monotonic() after which a part begins no other case.
        ceilings: bytes/s and FLOP/s, as the part "ceilings" measured them.
    """

    mode: str
    deadline: float = float("inf")
    ceilings: dict[str, float] = field(default_factory=dict)

    @property
    def dry(self) -> bool:
        return self.mode == "dry"

    @property
    def recording(self) -> bool:
        return self.mode == "record"

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0) if self.mode == "gpu" else torch.device("cpu")

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() > self.deadline

    def wait(self) -> None:
        """Until the device has finished."""
        if self.mode == "gpu":
            torch.cuda.synchronize()

    def normal(
        self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0
    ) -> torch.Tensor:
        """Random numbers of this standard deviation."""
        if self.recording:
            return torch.empty(shape, dtype=dtype)
        return torch.randn(shape, dtype=dtype, device=self.device).mul_(scale)

    def sets(self, nbytes: float, most: int = 1000) -> int:
        """How many inputs a call needs so that none is still in the L2 cache at its turn."""
        if self.mode != "gpu":
            return 1
        cache = 4 * torch.cuda.get_device_properties(0).L2_cache_size
        return min(most, max(1, -(-cache // max(int(nbytes), 1))))

    def rotating(self, make: Callable[[], object], nbytes: float) -> list:
        """A list of `sets(nbytes)` inputs."""
        return [make() for _ in range(self.sets(nbytes))]

    def time(self, *candidates: Sequence[Call], rounds: int = 15) -> list[Timing]:
        """Times of each candidate, a list of calls on inputs of their own, in turns.

        The calls of a candidate are captured into one CUDA graph, repeated until it runs for about
        a millisecond; a round replays each candidate's graph once. What waits for the device
        cannot be captured, and is launched call by call.
        """
        if self.recording:
            for calls in candidates:
                calls[0]()
            return [Timing([1.0], True) for _ in candidates]
        timers = [self._timer(calls) for calls in candidates]
        seconds: list[list[float]] = [[] for _ in candidates]
        warm = time.monotonic() + (0.0 if self.dry else WARM)
        while time.monotonic() < warm:  # an idle GPU takes a moment to reach its clock
            for run, _ in timers:
                run()
        for _ in range(1 if self.dry else rounds):
            for (run, _), times in zip(timers, seconds, strict=True):
                times.append(run())
        return [
            Timing(times, captured) for times, (_, captured) in zip(seconds, timers, strict=True)
        ]

    def _timer(self, calls: Sequence[Call]) -> tuple[Callable[[], float], bool]:
        if self.dry:
            return lambda: self._host_seconds(calls[:1]), False
        for call in calls:  # compiles, and fills the allocator
            call()
        torch.cuda.synchronize()
        if self._waits(calls[0]):
            return lambda: self._event_seconds(calls), False
        sequence = [*calls]
        graph = self.capture(sequence)
        repeats = round(TURN / max(self._event_seconds([graph.replay]), 1e-6))
        if repeats > 1:
            sequence *= min(repeats, 500)
            graph = self.capture(sequence)
        return lambda: self._event_seconds([graph.replay]) / len(sequence), True

    def _waits(self, call: Call) -> bool:
        """Whether a call makes the host wait for the device, which a graph cannot capture."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            return True
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return False

    def capture(self, calls: Sequence[Call]) -> "torch.cuda.CUDAGraph":
        """A CUDA graph of the calls, in order, replayed once.

        Raises:
            CaptureFailed: the process cannot be used any further.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for call in calls:
                    call()
        except Exception as error:
            raise CaptureFailed(f"{type(error).__name__}: {error}") from error
        graph.replay()
        torch.cuda.synchronize()
        return graph

    def _host_seconds(self, calls: Sequence[Call]) -> float:
        begin = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - begin) / len(calls)

    def _event_seconds(self, calls: Sequence[Call]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Keep the GPU busy during the first launch, which would otherwise count as the call's time.
        torch.cuda._sleep(LAUNCH_CYCLES)
        start.record()
        for call in calls:
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / len(calls)

    def floor_us(self, nbytes: float, flop: float = 0.0) -> float | None:
        """The least microseconds of a call that moves `nbytes` and does `flop` operations.

        None where the ceilings were not measured.
        """
        if not self.ceilings:
            return None
        seconds = max(nbytes / self.ceilings["bytes_s"], flop / self.ceilings["bf16_flop_s"])
        return seconds * 1e6


def environment(machine: Machine) -> Iterator[Case]:
    """The GPU, its driver, the software, and which of the optional packages are missing."""
    yield Case("environment", lambda: describe_all(machine))


def describe_all(machine: Machine) -> dict:
    row: dict[str, object] = {"gpu": "none (dry run)", "cuda": torch.version.cuda, **describe()}
    for name in ("triton", "transformers", "numpy", "flashinfer-python", "liger-kernel"):
        try:
            row[name] = version(name)
        except PackageNotFoundError:
            row[name] = None
    row["extension"] = importlib.util.find_spec("marco_fast._C") is not None
    if machine.mode == "gpu":
        properties = torch.cuda.get_device_properties(0)
        row["gpu"] = properties.name
        row["driver"] = output_of(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        )
        row["capability"] = f"sm_{properties.major}{properties.minor}"
        row["multiprocessors"] = properties.multi_processor_count
        row["memory_bytes"] = properties.total_memory
        row["l2_bytes"] = properties.L2_cache_size
    return row


def ceilings(machine: Machine) -> Iterator[Case]:
    """Bytes/s of a read-only sum and of a copy (read + write), FLOP/s of a matrix product."""
    yield Case("ceilings", lambda: measure_ceilings(machine))


def measure_ceilings(machine: Machine) -> dict:
    numel, size = (2**12, 64) if machine.dry else (2**30, 8192)
    buffer = machine.normal(numel)
    target = torch.empty_like(buffer)
    a, b = machine.normal(2, size, size, dtype=torch.bfloat16)
    read, copy, product = machine.time(
        [lambda: buffer.sum()], [lambda: target.copy_(buffer)], [lambda: a @ b]
    )
    row = {
        "read_bytes_s": buffer.nbytes / min(read.seconds),
        "copy_bytes_s": 2 * buffer.nbytes / min(copy.seconds),
        "bf16_flop_s": 2 * size**3 / min(product.seconds),
    }
    # Reads are at least as fast as a copy, even if the kernel of the sum is slower.
    row["bytes_s"] = max(row["read_bytes_s"], row["copy_bytes_s"])
    return row
