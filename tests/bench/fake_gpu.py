"""torch.cuda and a GPU that are not there: bench.gpu times on them as it would on real ones."""

import contextlib
from types import SimpleNamespace

import torch

from bench.gpu.machine import Machine, Timing

__all__ = ["L2_BYTES", "FakeGpu", "FakeGraph", "PretendMachine"]

L2_BYTES = 50 * 2**20


class FakeGpu:
    """torch.cuda as Machine uses it, with a clock. A call takes 10 microseconds; the launch of a
    graph takes 5, if nothing else runs."""

    def __init__(self, monkeypatch, seen=None):
        """`seen` is a bench.gpu.launches.Recording, whose launches are calls too."""
        self.clock, self.busy, self.mode, self.recorded = 0.0, False, "default", None
        self.seen = seen or SimpleNamespace(launches=0)
        cuda = torch.cuda
        cache = SimpleNamespace(L2_cache_size=L2_BYTES)
        monkeypatch.setattr(cuda, "get_device_properties", lambda device: cache)
        monkeypatch.setattr(cuda, "synchronize", lambda *args: None)
        monkeypatch.setattr(cuda, "set_sync_debug_mode", lambda mode: setattr(self, "mode", mode))
        monkeypatch.setattr(cuda, "_sleep", lambda cycles: setattr(self, "busy", True))
        monkeypatch.setattr(cuda, "CUDAGraph", lambda: FakeGraph(self))
        monkeypatch.setattr(cuda, "graph", self.capturing)
        monkeypatch.setattr(cuda, "Event", lambda enable_timing: FakeEvent(self))

    @contextlib.contextmanager
    def capturing(self, graph):
        self.recorded, before = graph.calls, self.seen.launches
        yield
        self.recorded += [1] * (self.seen.launches - before)
        self.recorded = None

    def call(self):
        if self.recorded is not None:
            self.recorded.append(1)
        else:
            self.clock += 10e-6

    def waiting_call(self):
        if self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        assert self.recorded is None
        self.call()


class FakeGraph:
    def __init__(self, gpu):
        self.gpu, self.calls = gpu, []

    def replay(self):
        self.gpu.clock += 10e-6 * len(self.calls) + (0.0 if self.gpu.busy else 5e-6)


class FakeEvent:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self):
        self.at = self.gpu.clock

    def synchronize(self):
        self.gpu.busy = False

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


class PretendMachine(Machine):
    """A machine with the sizes and the timing of a GPU, whose tensors are memory nobody touches.

    Attributes:
        inputs: how many calls each candidate of the last `time` rotated through.
    """

    def __init__(self, gpu: FakeGpu):
        super().__init__("gpu", ceilings={"bytes_s": 1e12, "bf16_flop_s": 1e30})
        self.gpu, self.inputs = gpu, []

    @property
    def device(self):
        return torch.device("cpu")

    @property
    def recording(self):
        return True

    def normal(self, *shape, dtype=torch.float32, scale=1.0):
        return torch.empty(shape, dtype=dtype)

    def time(self, *candidates, rounds=15):
        self.inputs = [len(calls) for calls in candidates]
        timers = [self._timer(calls) for calls in candidates]
        return [Timing([run() for _ in range(2)], captured) for run, captured in timers]
