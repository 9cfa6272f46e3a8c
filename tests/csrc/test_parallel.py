"""The team of threads behind the C++ kernels: of any size, from several callers, after a fork."""

import multiprocessing
import os
import threading
import time

import pytest
import torch

from marco_fast import ops
from marco_fast.engine.packing import pack_linear

_C = pytest.importorskip("marco_fast._C")


def product(a: torch.Tensor, panels: torch.Tensor, outputs: int, threads: int) -> torch.Tensor:
    result = torch.full((len(a), outputs), torch.nan)
    packed = _C.PackedLinear(panels=panels.data_ptr(), bias=0, inputs=a.shape[1], outputs=outputs)
    _C.linear(
        packed, (a.data_ptr(), *a.shape, *a.stride()), dtype=0, result=result.data_ptr(),
        accumulate=False, gated=0, threads=threads,
    )  # fmt: skip
    return result


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    weight, a = torch.randn(640, 64), torch.randn(3, 64)
    panels = pack_linear(weight)
    return a, panels, product(a, panels, 640, 1)


@pytest.mark.parametrize("threads", [2, 3, 8, 40])
def test_every_part_is_done_once_by_any_team(case, threads):
    a, panels, want = case
    for _ in range(300):
        assert torch.equal(product(a, panels, 640, threads), want)


def test_calls_right_after_a_sleep_wake_the_helpers(case):
    a, panels, want = case
    for _ in range(20):
        time.sleep(0.003)
        assert torch.equal(product(a, panels, 640, 3), want)


def test_callers_on_several_threads_at_once(case):
    a, panels, want = case
    wrong = []

    def hammer(scale: float) -> None:
        for _ in range(200):
            if not torch.equal(product(a * scale, panels, 640, 3), want * scale):
                wrong.append(scale)

    callers = [threading.Thread(target=hammer, args=(2.0**i,)) for i in range(4)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    assert not wrong


def in_a_child(case, queue) -> None:
    a, panels, want = case
    queue.put(torch.equal(product(a, panels, 640, 3), want))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_makes_its_own_team(case):
    product(case[0], case[1], 640, 3)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=in_a_child, args=(case, queue))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert queue.get()


def test_fewer_threads_than_before():
    before = torch.get_num_threads()
    logits, ids = torch.randn(8, 50000), torch.zeros(8, dtype=torch.int64)
    results = []
    try:
        for threads in (4, 1, 2):
            torch.set_num_threads(threads)
            results.append(ops.topk_confidence(logits, ids))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
