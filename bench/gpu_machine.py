"""One GPU as the benchmarks see it: what it is, how fast it reads, and how long calls take on it.

With `dry` the same code runs on a CPU with Triton's interpreter, on tiny shapes: nothing it then
times means anything, but every line has run once.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from bench.machine import describe, output_of

__all__ = ["Machine", "Timing"]

Call = Callable[[], object]


@dataclass
class Timing:
    """Seconds a call in each round, and how the calls were launched."""

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
    """Where the benchmarks run.

    Attributes:
        dry: rehearse on a CPU.
        deadline: time.monotonic() after which parts stop taking on more work.
    """

    dry: bool
    deadline: float = float("inf")
    ceilings: dict[str, float] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def cache_bytes(self) -> int:
        """Bytes of inputs that a measurement rotates through: several times the L2 cache."""
        if self.dry:
            return 1
        return 4 * torch.cuda.get_device_properties(0).L2_cache_size

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() > self.deadline

    def wait(self) -> None:
        """Until the device has finished."""
        if not self.dry:
            torch.cuda.synchronize()

    def rotating(self, make: Callable[[int], object], nbytes: int) -> list:
        """So many inputs that a call never finds its own in the L2 cache: make(0), make(1), ..."""
        return [make(i) for i in range(min(64, max(1, -(-self.cache_bytes // max(nbytes, 1)))))]

    def time(self, *candidates: Sequence[Call], rounds: int = 15) -> list[Timing]:
        """Times of each candidate, a list of calls on inputs of their own, in turns.

        The calls of a candidate are captured into one CUDA graph, repeated until it runs for about
        a millisecond; a round replays each candidate's graph once. What cannot be captured is
        launched call by call.
        """
        timers = [self._timer(calls) for calls in candidates]
        seconds: list[list[float]] = [[] for _ in candidates]
        for _ in range(1 if self.dry else rounds):
            for (run, _), times in zip(timers, seconds, strict=True):
                times.append(run())
        return [
            Timing(times, captured) for times, (_, captured) in zip(seconds, timers, strict=True)
        ]

    def _timer(self, calls: Sequence[Call]) -> tuple[Callable[[], float], bool]:
        for call in calls:  # compiles, and fills the allocator
            call()
        self.wait()
        if self.dry:
            return lambda: self._host_seconds(calls), False
        begin = time.perf_counter()
        for call in calls:
            call()
        self.wait()
        repeats = max(1, round(1e-3 / (time.perf_counter() - begin)))
        sequence = [call for _ in range(repeats) for call in calls]
        try:
            graph = self.capture(sequence)
        except RuntimeError:  # a call that waits for the device, or allocates outside the pool
            torch.cuda.synchronize()
            return lambda: self._event_seconds(sequence), False
        replay = [graph.replay]
        return lambda: self._event_seconds(replay) / len(sequence), True

    def capture(self, calls: Sequence[Call]) -> "torch.cuda.CUDAGraph":
        """A CUDA graph of the calls, in order, replayed once."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
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
        start.record()
        for call in calls:
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / len(calls)

    def measure_ceilings(self) -> list[dict]:
        """Bytes/s of a read-only sum and of a copy (read + write), FLOP/s of a matrix product."""
        numel, size = (2**31, 8192) if not self.dry else (2**12, 64)
        buffer = torch.rand(numel // 2, device=self.device)
        (read,) = self.time([lambda: buffer.sum()])
        target = torch.empty_like(buffer)
        (copy,) = self.time([lambda: target.copy_(buffer)])
        self.ceilings["read_bytes_s"] = buffer.nbytes / min(read.seconds)
        self.ceilings["copy_bytes_s"] = 2 * buffer.nbytes / min(copy.seconds)
        a, b = torch.randn(2, size, size, device=self.device).bfloat16()
        (product,) = self.time([lambda: a @ b])
        self.ceilings["bf16_flop_s"] = 2 * size**3 / min(product.seconds)
        # Reading is not slower than half of a copy, whatever the sum's own kernel reaches.
        best = max(self.ceilings["read_bytes_s"], self.ceilings["copy_bytes_s"])
        self.ceilings["bytes_s"] = best
        return [{"case": "ceilings", **self.ceilings}]

    def floor(self, nbytes: float, flop: float = 0.0) -> float:
        """Seconds that no call can beat which moves so many bytes and multiplies so much."""
        return max(nbytes / self.ceilings["bytes_s"], flop / self.ceilings["bf16_flop_s"])

    def describe(self) -> list[dict]:
        """The GPU, its driver, the software and the commit."""
        import triton

        row: dict[str, object] = {
            "case": "environment",
            "gpu": "none (dry run)" if self.dry else torch.cuda.get_device_name(0),
            "cuda": torch.version.cuda,
            "triton": triton.__version__,
            **describe(),
        }
        if not self.dry:
            properties = torch.cuda.get_device_properties(0)
            row["driver"] = output_of(
                "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
            )
            row["capability"] = f"sm_{properties.major}{properties.minor}"
            row["multiprocessors"] = properties.multi_processor_count
            row["memory_bytes"] = properties.total_memory
            row["l2_bytes"] = properties.L2_cache_size
        return [row]
