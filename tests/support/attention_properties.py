"""What tree attention promises on every backend: each check takes a forest and how to run it.

`run` gives (out, lse) of a Forest from poisoned memory, as Forest.run does.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

import marco_fast as mf
from tests.support.tolerance import assert_close, assert_lse_close
from tests.support.trees import Forest, baseline_attention

__all__ = [
    "check_a_fresh_plan", "check_alone", "check_beside", "check_close", "check_leak", "check_order",
    "check_pages", "check_scaled_values", "equal", "expectation",
]  # fmt: skip

Result = tuple[torch.Tensor, torch.Tensor]
Run = Callable[[Forest], Result]


def equal(left: Result, right: Result) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def expectation(forest: Forest) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """out and lse in float64, and out by PyTorch in the inputs' dtype."""
    want, want_lse = forest.want()
    return want, want_lse, baseline_attention(forest, want)


def check_close(got: Result, forest: Forest, expected: tuple | None = None) -> None:
    """Within the tolerance of `expected`, by default the forest's expectation."""
    out, lse = got
    want, want_lse, baseline = expected or expectation(forest)
    assert_close(out, want, baseline)
    assert_lse_close(lse, want_lse)
    assert (out.dtype, lse.dtype) == (forest.q.dtype, torch.float32)


def check_alone(forest: Forest, run: Run) -> None:
    """Each query has the bits that it has without the others."""
    out, lse = run(forest)
    for i in range(len(forest.leaves)):
        assert equal(run(forest.only([i])), (out[i : i + 1], lse[i : i + 1]))


def check_order(forest: Forest, order: Sequence[int], run: Run) -> None:
    """Queries in another order, some of them twice or not at all."""
    out, lse = run(forest)
    assert equal(run(forest.only(order)), (out[order], lse[order]))


def check_pages(forest: Forest, page_size: int, run: Run) -> None:
    """Other pages, of another size."""
    other = replace(forest, page_seed=99, spare_pages=40, page_size=page_size)
    assert equal(run(other), run(forest))


def check_beside(forest: Forest, extra: Forest, run: Run) -> None:
    """An unrelated forest in the same plan."""
    n, queries = len(extra.parents), len(forest.leaves)
    both = Forest(
        np.concatenate([extra.parents, np.where(forest.parents < 0, -1, forest.parents + n)]),
        extra.k + forest.k,
        extra.v + forest.v,
        np.concatenate([forest.leaves + n, extra.leaves]),
        torch.cat([forest.q, extra.q]),
        forest.page_size,
    )
    out, lse = run(both)
    assert equal((out[:queries], lse[:queries]), run(forest))


def check_leak(forest: Forest, node: int, run: Run) -> None:
    """A segment's K and V moved by 1e3 change the queries below it and not a bit of any other."""
    below = []
    for leaf in forest.leaves:
        path = [int(leaf)]
        while forest.parents[path[-1]] >= 0:
            path.append(int(forest.parents[path[-1]]))
        below.append(node in path)
    k, v = list(forest.k), list(forest.v)
    k[node], v[node] = k[node] + 1e3, v[node] - 1e3
    (out, lse), (moved, moved_lse) = run(forest), run(replace(forest, k=k, v=v))
    others = ~torch.tensor(below)
    assert equal((moved[others], moved_lse[others]), (out[others], lse[others]))
    if len(k[node]) and any(below):
        assert not torch.equal(moved, out)


def check_scaled_values(forest: Forest, power: int, run: Run) -> None:
    """V times 2^power: out times 2^power, and the same lse."""
    out, lse = run(forest)
    scaled_out, scaled_lse = run(replace(forest, v=[v * 2.0**power for v in forest.v]))
    assert torch.equal(scaled_lse, lse)
    normal = out.abs() > 1e-3  # subnormal halves round
    assert torch.equal(scaled_out[normal], (out * 2.0**power)[normal])


def check_a_fresh_plan(
    backend: str, dtype: torch.dtype, *, prompt: int, start: int, heads: int, every: int
) -> None:
    """20 steps of `advance` from `start` tokens in each leaf; every so many of them, and before the
    first, the same bits as a plan made for what is there then. Some steps pass over some leaves.
    """
    torch.manual_seed(start)
    steps, lens = 20, [start] * 3
    rows = [torch.randn(2, n, 1, 32).to(dtype) for n in (prompt, *[start + steps] * 3)]
    q = torch.randn(3, heads, 32).to(dtype)
    parents, leaves = np.array([-1, 0, 0, 0]), np.array([2, 1, 3])

    def at(lens: list[int], **options) -> Forest:
        k, v = ([x[i][:n] for x, n in zip(rows, (prompt, *lens), strict=True)] for i in (0, 1))
        return Forest(parents, k, v, leaves, q, 16, **options)

    first = at(lens, reserve=steps)
    table, _ = first.tables()
    caches, plan = first.caches(), first.plan(max_new_tokens=steps)
    for step in range(steps + 1):
        if step % every == 0:
            out = torch.full_like(q, torch.nan)
            workspace = torch.full((plan.workspace_numel,), torch.nan)
            got = mf.tree_attention(
                q, *caches, plan, return_lse=True, out=out, workspace=workspace, backend=backend
            )
            assert equal(got, at(lens).run(backend=backend))
        if step == steps:
            break
        active = np.array([True, False, step % 2 == 0]) if step % 3 == 0 else np.ones(3, bool)
        plan.advance(active if step % 3 == 0 else None)
        grows = [n for n in range(3) if active[list(leaves).index(n + 1)]]
        slots = [int(table[n + 1, lens[n] // 16]) * 16 + lens[n] % 16 for n in grows]
        k, v = torch.stack([rows[n + 1][:, lens[n]] for n in grows], 1)
        mf.append_kv(k, v, *caches, torch.tensor(slots))
        for n in grows:
            lens[n] += 1
