"""The torch.library operators in compiled and exported code: the same bits, compiled once."""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import marco_fast as mf
from marco_fast.torch_library import packed_plan
from tests.support.operator_cases import NAMES, OPS, attended, draws, forest_of, logits_of, same

pytestmark = pytest.mark.usefixtures("fresh_compiler", "one_thread")


def test_errors_leave_compiled_code_as_they_are():
    compiled = torch.compile(OPS.topk_confidence, fullgraph=True, backend="aot_eager")
    compiled(logits_of(3), torch.tensor([1, 2, 3]))
    with pytest.raises(IndexError, match=r"expected token ids in \[0, 40\), got 1 to 40"):
        compiled(logits_of(3), torch.tensor([1, 2, 40]))


class Decoder:
    """Decode steps over a root of 5 tokens and one growing leaf a query.

    The caches are tensors of their own, or with `pool` views of one.
    """

    def __init__(self, queries: int, pool: bool = False):
        torch.manual_seed(queries)
        self.lens = torch.tensor([5, *(i % 10 for i in range(queries))])
        self.table = torch.randperm(2 * queries + 4)[: 2 * queries + 2].view(-1, 2)
        self.plan = mf.plan_tree_attention(
            [-1] + [0] * queries, self.lens, self.table.int(), range(1, queries + 1),
            num_heads=4, num_kv_heads=2, head_dim=16, page_size=8, max_new_tokens=4,
        )  # fmt: skip
        self.packed = packed_plan(self.plan)
        caches = torch.randn(2, 2 * queries + 4, 2, 8, 16)
        self.caches = caches.unbind() if pool else [cache.clone() for cache in caches]
        self.weight = torch.randn(64, 40)
        self.paths = (
            torch.zeros(queries, dtype=torch.int64),
            torch.zeros(queries, dtype=torch.int32),
        )
        self.queries, self.steps = queries, 0

    def step(self, function):
        """The results of one step by `function`, which writes the caches and the paths."""
        self.plan.advance()
        at = self.lens[1:] + self.steps
        slots = self.table[1:].gather(1, at[:, None] // 8)[:, 0] * 8 + at % 8
        torch.manual_seed(100 + self.steps)
        k, v = torch.randn(2, self.queries, 2, 16)
        q = torch.randn(self.queries, 4, 16)
        self.steps += 1
        row = draws(self.queries)
        inputs = q, k, v, *self.caches, slots, self.weight, row["seeds"], at, *self.paths
        return function(*inputs, self.packed)

    def written(self):
        return *self.caches, *self.paths


def decode(q, k, v, k_cache, v_cache, slots, weight, seeds, at, sums, counts, packed):
    OPS.append_kv(k, v, k_cache, v_cache, slots)
    out, lse = OPS.tree_attention(q, k_cache, v_cache, packed)
    logits = out.flatten(1) @ weight
    drawn = OPS.sample_confidence(
        logits, seeds=seeds, positions=at, path_sums=sums, path_counts=counts
    )
    scores = OPS.topk_confidence(logits, drawn[0], top_k=3)
    headed = OPS.lm_head_confidence(out.flatten(1), weight.view(40, 64), seeds=seeds, positions=at)
    return out, lse, *drawn, *scores, *headed


def decode_publicly(plan):
    """decode by the public operations."""

    def step(q, k, v, k_cache, v_cache, slots, weight, seeds, at, sums, counts, packed):
        mf.append_kv(k, v, k_cache, v_cache, slots)
        out, lse = mf.tree_attention(q, k_cache, v_cache, plan, return_lse=True)
        logits = out.flatten(1) @ weight
        drawn = mf.sample_confidence(
            logits, seeds=seeds, positions=at, path_sums=sums, path_counts=counts
        )
        scores = mf.topk_confidence(logits, drawn[0], top_k=3)
        headed = mf.lm_head_confidence(
            out.flatten(1), weight.view(40, 64), seeds=seeds, positions=at
        )
        return out, lse, *drawn, *scores, *headed

    return step


def compare_steps(compiled, queries: int, steps: int = 4, pool: bool = False) -> None:
    """Compiled, eager and public calls give the same bits, written tensors included."""
    one, eager, public = (Decoder(queries, pool) for _ in range(3))
    for _ in range(steps):
        got = one.step(compiled)
        same(got, eager.step(decode))
        same(got, public.step(decode_publicly(public.plan)))
        same(one.written(), eager.written())
        same(one.written(), public.written())
    assert one.paths[1].tolist() == [steps] * queries


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_steps_are_the_same_bits(backend, pool):
    compare_steps(torch.compile(decode, fullgraph=True, backend=backend), 3, pool=pool)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@torch._inductor.config.patch(fx_graph_cache=False)
def test_inductor_steps_are_the_same_bits_without_a_copy():
    compiled = torch.compile(decode, fullgraph=True, backend="inductor")
    _, code = run_and_get_code(compare_steps, compiled, 3)
    assert len(code) == 1
    assert [f"marco_fast.{name}.default(" in code[0] for name in NAMES] == [True] * len(NAMES)
    assert "clone" not in code[0]
    assert "copy" not in code[0]


def test_steps_of_any_batch_and_plan_are_compiled_once():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(decode, fullgraph=True, backend=counter)

    def marked(*inputs):
        for each in torch.utils._pytree.tree_leaves(inputs):
            if torch.is_tensor(each) and each is not inputs[6]:  # all but the weight
                torch._dynamo.mark_dynamic(each, 0)
        return compiled(*inputs)

    for queries in (7, 2, 9, 30):
        compare_steps(marked, queries, steps=2)
    assert counter.frame_count == 1


def test_a_marked_batch_is_compiled_once():
    def score(logits, ids, seeds, at):
        drawn = OPS.sample_confidence(logits, seeds=seeds, positions=at)
        return *OPS.topk_confidence(logits, ids), *drawn

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(score, fullgraph=True, backend=counter)
    for rows in (4, 2, 17, 64):
        inputs = logits_of(rows), torch.arange(rows) % 40, *draws(rows).values()
        for each in inputs:
            torch._dynamo.mark_dynamic(each, 0)
        same(compiled(*inputs), score(*inputs))
    assert counter.frame_count == 1


def symbolic(mode: FakeTensorMode, tensor: torch.Tensor, *dynamic: int) -> torch.Tensor:
    sizes = [DimDynamic.DYNAMIC if i in dynamic else DimDynamic.STATIC for i in range(tensor.ndim)]
    return mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))


def test_fakes_keep_symbols_and_add_no_guards():
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes)
    lg = symbolic(mode, logits_of(6, dtype=torch.bfloat16, padded=3), 0)
    ids = symbolic(mode, torch.arange(6), 0)
    q, k_cache, v_cache, packed = attended(forest_of(1, 6))
    fakes = symbolic(mode, q, 0), symbolic(mode, k_cache, 0), symbolic(mode, v_cache, 0)
    with mode:
        scores = OPS.topk_confidence(lg, ids, top_k=7)
        drawn = OPS.sample_confidence(lg, seeds=ids, positions=ids, top_k=7)
        out, lse = OPS.tree_attention(*fakes, symbolic(mode, packed, 0))
    rows, queries = str(lg.shape[0]), str(fakes[0].shape[0])
    assert rows.startswith("s")
    want = [f"{rows} float32"] * 3 + [f"{rows} 7 float32", f"{rows} 7 int32", f"{rows} int32"]
    assert [described(x) for x in scores] == want
    assert [described(x) for x in drawn] == [f"{rows} int32", *want, f"{rows} float32"]
    assert [described(out), described(lse)] == [f"{queries} 6 16 float32", f"{queries} 6 float32"]
    assert not shapes.guards


def described(tensor: torch.Tensor) -> str:
    return " ".join([*map(str, tensor.shape), str(tensor.dtype).removeprefix("torch.")])


def test_exported_module_is_the_same_and_keeps_the_operators():
    class Step(torch.nn.Module):
        def forward(self, *inputs):
            return decode(*inputs)

    def export(*inputs):
        copies = torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, inputs)
        program = torch.export.export(Step(), copies)
        targets = [str(node.target) for node in program.graph.nodes]
        assert [f"marco_fast.{name}.default" in targets for name in NAMES] == [True] * len(NAMES)
        return program.module()(*inputs)

    one, eager = Decoder(3), Decoder(3)
    same(one.step(export), eager.step(decode))
    same(one.written(), eager.written())
