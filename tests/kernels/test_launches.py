"""What the launchers launch: few specialisations, whatever the sizes, and kernels alone."""

import itertools
import json
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("triton")

from marco_fast.kernels import launch
from tests.support.compiling import compiling_python

RECORD = """
import json, random, sys
import torch
import marco_fast as mf
from bench.gpu.launches import recording
from bench.gpu.parts.inputs import attention_inputs
from bench.gpu.machine import Machine
from bench.common.trees import Tree

rng = random.Random(0)
options = {"backend": "triton"}


def draw(rows):
    keys = {"seeds": torch.zeros(rows, dtype=torch.int64), "positions": torch.zeros(rows).long()}
    keys |= {"temperature": rng.choice([0, 1, 0.7, torch.ones(rows)])}
    keys |= {"top_p": rng.choice([1, 0.9, torch.ones(rows)]), "min_p": rng.choice([0, 0.1])}
    keys |= {"sample_top_k": rng.choice([0, 1, 16, torch.ones(rows).int()])}
    if rng.random() < 0.5:
        keys |= {"path_sums": torch.zeros(rows + 1, dtype=torch.int64)[1:]}
        keys |= {"path_counts": torch.zeros(rows + 1, dtype=torch.int32)[1:]}
        keys |= {"active": torch.ones(rows, dtype=torch.bool)}
    keys |= {"denominator": rng.choice(["top_k", "union"])}
    if not (isinstance(keys["temperature"], int) and keys["temperature"] == 0):
        keys |= {"score": rng.choice(["raw", "tempered"])}
    return keys | {"top_k": rng.choice([1, 5, 8])} | options


def confidence():
    for rows in range(1, 601):
        logits = torch.empty(rows, 151936, dtype=torch.bfloat16)
        ids = torch.zeros(rows + 1, dtype=torch.int64)[1:]
        either = rng.choice(["top_k", "union"])
        scored = {"temperature": rng.choice([1, 0.5]), "denominator": either}
        mf.topk_confidence(logits, ids, **scored, **options)
        mf.sample_confidence(logits, **draw(rows))


def lm_head():
    for vocab, rows in ((152064, range(1, 65)), (4000, (1, 16, 17, 64))):
        weight = torch.empty(vocab, 3584, dtype=torch.bfloat16)
        for each in rows:
            hidden = torch.empty(each, 3584, dtype=torch.bfloat16)
            mf.lm_head_confidence(hidden, weight, **draw(each))
            few = {"sample_top_k": rng.choice([0, 1, 16]), "top_k": rng.choice([1, 5, 8])}
            mf.lm_head_records(hidden, weight, each, vocab + 99, **few, **options)


def attention():
    for _ in range(60):
        nodes = rng.randint(1, 40)
        parents = [-1, *(rng.randrange(-1, n) for n in range(1, nodes))]
        lens = [rng.choice([0, 1, 15, 16, 17, 300]) for _ in parents]
        leaves = [rng.randrange(nodes) for _ in range(rng.randint(1, 70))]
        tree = Tree(parents, lens, leaves)
        q, k, v, plan = attention_inputs(Machine("record"), "qwen2-7b", tree)
        mf.tree_attention(q, k, v, plan, return_lse=rng.random() < 0.5, **options)
        t = rng.randint(1, 40)
        mf.append_kv(q.new_empty(t, 4, 128), q.new_empty(t, 4, 128), k, v, torch.full((t,), -1),
                     **options)


with recording("sm_90") as seen:
    globals()[sys.argv[1]]()
print(json.dumps([each.label for each in seen.specializations.values()]))
"""


def labels(subject: str) -> list[str]:
    """The specialisations that many calls need, in a process that does not interpret."""
    done = compiling_python("-c", RECORD, subject)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("subject", "kernels"),
    [
        ("confidence", {"topk_confidence_kernel": 1, "sample_confidence_kernel": 1}),
        (
            "lm_head",
            # The draw once before and once after the logits that it asks for.
            {
                "lm_head_scan_kernel": 1,
                "lm_head_logits_kernel": 1,
                "lm_head_draw_kernel": 2,
                "lm_head_summary_kernel": 1,
            },
        ),
        # Items of 16 and of 32 rows.
        ("attention", {"attend_kernel": 2, "merge_kernel": 1, "append_kv_kernel": 1}),
    ],
)
def test_sizes_and_options_need_no_specialization_of_their_own(subject, kernels):
    found = [label.split()[0] for label in labels(subject)]
    assert {name: found.count(name) for name in found} == kernels


def test_what_is_not_specialized_in_a_tuple():
    """An integer that is 1 is an argument again, and attributes go; a None stays a constant."""
    from marco_fast.kernels.specialization import unspecialized

    class Three(NamedTuple):
        pointer: object
        one: object
        none: object

    kinds, keys = Three("*fp32", "constexpr", "constexpr"), Three("D", 1, None)
    assert unspecialized(kinds, keys) == (("*fp32", "i32", "constexpr"), (None, None, None))
    assert type(unspecialized(kinds, keys)[0]) is Three
    assert unspecialized((kinds, "i64"), (keys, "")) == (
        (("*fp32", "i32", "constexpr"), "i64"),
        ((None, None, None), None),
    )
    assert unspecialized("i32", "D") == ("i32", None)


@pytest.fixture
def fake_gpu(monkeypatch):
    """torch.cuda as zeroed_arrivals asks it, on a device whose tensors lie in the CPU's memory."""

    class Stream:
        cuda_stream = 7

        def synchronize(self) -> None:
            pass

    class Device:
        type = "cuda"

    class Gpu:
        stream, capturing, device, made = Stream(), False, Device(), 0

    def zeros(shape, *, dtype, device):
        Gpu.made += 1
        return torch.full([shape] if isinstance(shape, int) else shape, 0, dtype=dtype)

    Gpu.made = 0
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Gpu.stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: Gpu.capturing)
    monkeypatch.setattr(launch, "_arrivals", {})
    monkeypatch.setattr(torch, "zeros", zeros)
    return Gpu


def test_calls_on_a_stream_share_arrivals_that_nothing_clears(fake_gpu):
    first = launch.zeroed_arrivals(5, fake_gpu.device)
    second = launch.zeroed_arrivals(264, fake_gpu.device)
    assert (first.shape, second.shape) == ((5,), (264,))
    assert first.dtype == torch.int32
    assert first.data_ptr() == second.data_ptr()
    assert fake_gpu.made == 1
    fake_gpu.stream.cuda_stream = 8
    other = launch.zeroed_arrivals(2048, fake_gpu.device)
    assert other.data_ptr() >= first.data_ptr() + 4 * launch.STREAM_ARRIVALS
    assert fake_gpu.made == 1


def test_captured_calls_have_their_own_arrivals(fake_gpu):
    fake_gpu.capturing = True
    early = launch.zeroed_arrivals(4, fake_gpu.device)  # in a graph, before any call outside of one
    assert fake_gpu.made == 1
    fake_gpu.capturing = False
    eager = launch.zeroed_arrivals(4, fake_gpu.device)
    fake_gpu.capturing = True
    graphs = [launch.zeroed_arrivals(3, fake_gpu.device) for _ in range(3)]
    assert fake_gpu.made == 2
    everyone = [early, eager, *graphs]
    # Each begins at a multiple of 16 bytes: the kernels are compiled for that.
    assert len({each.data_ptr() for each in everyone}) == 5
    assert [b.data_ptr() - a.data_ptr() for a, b in itertools.pairwise(graphs)] == [16] * 2


def test_when_arrivals_run_out_zeros_are_made(fake_gpu):
    launch.zeroed_arrivals(1, fake_gpu.device)
    fake_gpu.capturing = True
    rows = launch.ARRIVALS // 2
    assert launch.zeroed_arrivals(rows, fake_gpu.device).shape == (rows,)
    assert fake_gpu.made == 1
    last = launch.zeroed_arrivals(rows, fake_gpu.device)
    assert last.shape == (rows,)
    assert fake_gpu.made == 2
    fake_gpu.capturing = False
    fake_gpu.stream.cuda_stream = 9
    many = launch.zeroed_arrivals(launch.STREAM_ARRIVALS + 1, fake_gpu.device)
    assert many.shape == (launch.STREAM_ARRIVALS + 1,)
    assert fake_gpu.made == 3


@pytest.mark.parametrize("op", ["topk_confidence", "sample_confidence", "lm_head_confidence"])
def test_a_call_launches_kernels_alone(op, in_interpreter, monkeypatch):
    """Options given as numbers are not filled into tensors: PyTorch only allocates."""
    import marco_fast as mf

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        names: list = []  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    from marco_fast.kernels import (
        lm_head_confidence,
        lm_head_launch,
        sample_confidence,
        topk_confidence,
    )
    from marco_fast.kernels.confidence_scan import Shares

    monkeypatch.setattr(topk_confidence, "topk_confidence_kernel", NoKernel())
    monkeypatch.setattr(sample_confidence, "sample_confidence_kernel", NoKernel())
    monkeypatch.setattr(lm_head_launch, "lm_head_scan_kernel", NoKernel())
    monkeypatch.setattr(lm_head_confidence, "lm_head_draw_kernel", NoKernel())
    monkeypatch.setattr(lm_head_confidence, "lm_head_logits_kernel", NoKernel())
    for module in (topk_confidence, sample_confidence):
        monkeypatch.setattr(module, "shares_of", lambda *args: Shares(1, 2, 1))
    arrivals = torch.zeros(3, dtype=torch.int32)
    monkeypatch.setattr(launch, "zeroed_arrivals", lambda rows, device: arrivals)
    keys = torch.zeros(3, dtype=torch.int64)
    drawn = {"seeds": keys, "positions": keys, "temperature": 0.7, "top_p": 0.9, "min_p": 0.1}
    x, weight = torch.zeros(3, 64), torch.zeros(9000, 64)
    with Seen() as seen:
        if op == "topk_confidence":
            mf.topk_confidence(x, keys, backend="triton")
        elif op == "sample_confidence":
            mf.sample_confidence(x, **drawn, sample_top_k=3, backend="triton")
        else:
            mf.lm_head_confidence(x, weight, **drawn, backend="triton")
    assert set(seen.names) <= {"empty", "view", "slice", "detach"}, seen.names


class NoKernel:
    """In a kernel's place."""

    def __getitem__(self, grid):
        return lambda *args, **options: None
