"""The planner of tree attention: the whole Python call, and the C++ part alone.

make bench, or: pytest bench/operations/bench_plan_tree_attention.py --benchmark-only -s
"""

import statistics

import numpy as np
import pytest

import marco_fast as mf
from bench.common.roofline import interleaved
from marco_fast import _C
from marco_fast.ops.reference.plan import ReferencePlan

TARGET = 50e-6  # seconds at 1,000 nodes, the C++ part
SHAPE = {"num_heads": 28, "num_kv_heads": 4, "head_dim": 128, "page_size": 16}


@pytest.mark.parametrize("kind", ["random", "chains", "star"])
@pytest.mark.parametrize("nodes", [100, 1000])
def test_plan(benchmark, nodes, kind):
    rng = np.random.default_rng(0)
    if kind == "random":
        parents = np.array([-1, *(int(rng.integers(0, n)) for n in range(1, nodes))])
    elif kind == "chains":  # 16 branches, each a chain below one prompt
        parents = np.array([-1, *(max(0, n - 16) for n in range(1, nodes))])
    else:
        parents = np.array([-1, *[0] * (nodes - 1)])
    lens = rng.integers(1, 65, nodes)
    table = rng.permutation(nodes * 6).reshape(nodes, 6).astype(np.int32)
    leaves = np.setdiff1d(np.arange(nodes), parents)
    arguments = (parents, lens, table, leaves, None, 16, 0)

    def whole() -> mf.TreeAttentionPlan:
        return mf.plan_tree_attention(parents, lens, table, leaves, **SHAPE)

    plan, reference = whole(), ReferencePlan(*arguments)
    for name in ("query_order", "segment_ids", "query_begin", "query_end", "page_ids"):
        assert np.array_equal(getattr(plan, name), getattr(reference, name))
    times = interleaved(whole, lambda: _C.make_tree_plan(*arguments), rounds=300)
    call, native = (statistics.median(each) for each in times)
    benchmark.pedantic(whole, rounds=20, warmup_rounds=2)
    benchmark.extra_info |= {
        "us": call * 1e6,
        "native_us": native * 1e6,
        "target_us": TARGET * 1e6,
        "queries": len(leaves),
    }
    print(
        f"\n{kind}, {nodes} nodes, {len(leaves)} queries: {call * 1e6:.1f} us the call, "
        f"{native * 1e6:.1f} us in C++ (target 50 at 1,000 nodes)"
    )
