"""Tree attention at the edges of memory: guard pages, addresses beyond 2^31, and bad arguments."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import marco_fast as mf
from marco_fast.ops.attention.attend import AttentionInputs, AttentionOptions, AttentionResult
from marco_fast.ops.backends import load_backend
from tests.support.attention_properties import check_close
from tests.support.hostile import against_guard, sparse_rows
from tests.support.trees import random_forest

CPU = torch.device("cpu")


def run_guarded(backend: str, seeds: range, **sizes: int) -> None:
    """Every tensor ends right before a page that may not be touched; a fault ends the process."""
    attend = load_backend(backend, CPU, "tree_attention").tree_attention
    for seed in seeds:
        rng = np.random.default_rng(seed)
        forest = random_forest(
            seed,
            heads=int(rng.choice([1, 3, 7])),
            head_dim=int(rng.choice([16, 48, 80, 128])),
            page_size=int(rng.choice([1, 8, 16])),
            dtype=[torch.float32, torch.bfloat16, torch.float16][seed % 3],
            partial=bool(seed % 2),
            **sizes,
        )
        plan = forest.plan()
        # The last page of the cache is the last one that the plan reads.
        caches = [cache[: plan.arrays.num_pages_needed] for cache in forest.caches()]
        k_cache, v_cache = (against_guard(cache.contiguous()) for cache in caches)
        q, out = against_guard(forest.q), against_guard(torch.zeros_like(forest.q))
        lse = against_guard(torch.zeros(forest.q.shape[:2]))
        words = guard_items(plan) if backend == "triton" else plan.workspace_numel
        workspace = against_guard(torch.full((words,), torch.nan))
        attend(
            AttentionInputs(q, k_cache, v_cache, plan),
            AttentionOptions(plan.scale, workspace),
            AttentionResult(out, lse),
        )
        check_close((out, lse), forest)
        tokens = against_guard(torch.randn(2, 2, 1, forest.q.shape[2]).to(forest.q.dtype))
        slots = against_guard(torch.tensor([0, k_cache.shape[0] * forest.page_size - 1]))
        if k_cache.shape[0]:
            mf.append_kv(tokens[0], tokens[1], k_cache, v_cache, slots, backend=backend)


def guard_items(plan: mf.TreeAttentionPlan) -> int:
    """Puts the arrays that a Triton kernel reads before guards; the words of its workspace."""
    items = plan.items(CPU)
    items.sections = type(items.sections)(*map(against_guard, items.sections))
    return items.sizes.num_partials * plan.num_heads * (plan.head_dim + 2)


def run_in_a_process(code: str) -> None:
    begin = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from tests.ops import test_tree_attention_memory as tests\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{begin}{code}; print('done')", *sys.path],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "done\n", done.stderr


def test_nothing_outside_is_touched(isa):
    run_in_a_process(
        f"from marco_fast import _C; _C.set_isa({isa!r}); tests.run_guarded('cpu', range(50))"
    )


@pytest.mark.usefixtures("in_interpreter")
def test_nothing_outside_is_touched_in_the_interpreter():
    run_in_a_process("tests.run_guarded('triton', range(24), nodes=6, queries=4)")


def huge(pages: int, heads: int, page_size: int, dim: int) -> torch.Tensor:
    """A bfloat16 cache of which only the touched pages exist."""
    return sparse_rows(1, pages * heads * page_size * dim, 0, torch.bfloat16).view(
        pages, heads, page_size, dim
    )


def check_far(backend: str) -> None:
    """Pages, and rows of q and out, whose elements are numbered beyond 2^31."""
    pages, heads, page_size, dim = 2**31 // (2 * 16 * 128) + 40, 2, 16, 128
    k_cache, v_cache, room = (huge(pages, heads, page_size, dim) for _ in range(3))
    assert k_cache.numel() > 2**31
    shape = {"num_heads": 6, "num_kv_heads": 2, "head_dim": dim, "page_size": page_size}
    table = np.array([[pages - 1, 3], [pages - 30, pages - 2]], np.int32)
    k, v, q = (torch.randn(50, n, dim).bfloat16() for n in (heads, heads, 6))
    at = np.r_[np.repeat(table[0], 16)[:20], np.repeat(table[1], 16)[:30]].astype(np.int64)
    slots = torch.from_numpy(at * 16 + np.r_[np.arange(20), np.arange(30)] % 16)
    mf.append_kv(k, v, k_cache, v_cache, slots, backend=backend)
    assert torch.equal(k_cache[pages - 1, :, 15], k[15])
    plan = mf.plan_tree_attention([-1, 0], [20, 30], table, [1, 0, 1], **shape)
    # The stride itself is below 2^31: a kernel's products must be wide, not its arguments alone.
    strides = (room.numel() // 2 - 6 * dim, dim, 1)
    far_q = room.as_strided((3, 6, dim), strides)
    far_out = room.as_strided((3, 6, dim), strides, 6 * dim)
    far_q.copy_(q[:3])
    out = mf.tree_attention(far_q, k_cache, v_cache, plan, out=far_out, backend=backend)
    near = [torch.zeros(4, heads, page_size, dim).bfloat16() for _ in range(2)]
    low = np.array([[0, 1], [2, 3]], np.int32)
    low_slots = torch.from_numpy(np.r_[np.arange(20), 32 + np.arange(30)])
    mf.append_kv(k, v, *near, low_slots)
    plan = mf.plan_tree_attention([-1, 0], [20, 30], low, [1, 0, 1], **shape)
    assert torch.equal(out, mf.tree_attention(q[:3], *near, plan, backend=backend))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_addresses_beyond_int32(backend, isa):
    check_far(backend)


@pytest.mark.usefixtures("in_interpreter")
def test_addresses_beyond_int32_in_the_interpreter(chunks):
    check_far("triton")


def test_pages_outside_the_cache_are_refused():
    forest = random_forest(0)
    plan, (k_cache, v_cache) = forest.plan(), forest.caches()
    fewer = plan.arrays.num_pages_needed - 1
    with pytest.raises(IndexError, match=f"below {fewer}, .* got {fewer}"):
        mf.tree_attention(forest.q, k_cache[:fewer], v_cache[:fewer], plan)
    # A check that passed once does not vouch for another cache.
    mf.tree_attention(forest.q, k_cache, v_cache, plan)
    with pytest.raises(IndexError):
        mf.tree_attention(forest.q, k_cache[:fewer], v_cache[:fewer], plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": lambda q: q[:, :6]}, "expected q"),
        ({"q": lambda q: q[:5]}, "expected q"),
        ({"q": lambda q: q[..., :16]}, "expected q"),
        ({"q": lambda q: q.transpose(1, 2).contiguous().transpose(1, 2)}, "expected q"),
        ({"q": lambda q: q.half()}, "of one dtype"),
        ({"q": lambda q: q.double()}, "float32, bfloat16 or float16"),
        ({"k_cache": lambda c: c[:, :, :8]}, "one shape"),
        ({"k_cache": lambda c: c[..., :16]}, "expected k_cache"),
        ({"v_cache": lambda c: c.transpose(2, 3).contiguous().transpose(2, 3)}, "contiguous"),
        ({"v_cache": lambda c: c.bfloat16()}, "of one dtype"),
        ({"v_cache": lambda c: c[0]}, "expected v_cache"),
        ({"out": lambda q: q[:, :6]}, "expected out"),
        ({"out": lambda q: q.half()}, "expected out"),
        ({"out": lambda q: q.transpose(1, 2).contiguous().transpose(1, 2)}, "expected out"),
        ({"workspace": lambda w: w[:-1]}, "expected workspace"),
        ({"workspace": lambda w: w.double()}, "expected workspace"),
        ({"workspace": lambda w: w.repeat(2)[::2]}, "expected workspace"),
        ({"backend": lambda _: "numpy"}, "expected backend"),
    ],
)
def test_bad_input(change, message):
    forest = random_forest(0)
    plan, (k_cache, v_cache) = forest.plan(), forest.caches()
    given = {
        "q": forest.q,
        "k_cache": k_cache,
        "v_cache": v_cache,
        "out": torch.full_like(forest.q, 5.0),
        "workspace": torch.empty(plan.workspace_numel),
        "backend": None,
    }
    out = given["out"]
    for name, wrong in change.items():
        given[name] = wrong(given[name])
    with pytest.raises(ValueError, match=message):
        mf.tree_attention(plan=plan, **given)
    assert (out == 5.0).all()
