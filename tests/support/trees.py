"""Random forests of segments with hostile memory around them, for the tests of tree attention.

Every cache slot that no segment owns holds NaN (the tails of owned pages too), every block-table
entry beyond a segment's pages names page 2^30, and q and the caches have padded strides.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

import marco_fast as mf

__all__ = ["Forest", "baseline_attention", "random_forest"]

UNUSED_PAGE = 2**30


@dataclass(frozen=True)
class Forest:
    """Segments, the queries that end in them, and every tensor of one call.

    k and v hold each segment's rows [tokens, kv_heads, dim]; q is [queries, heads, dim].
    """

    parents: np.ndarray
    k: list[torch.Tensor]
    v: list[torch.Tensor]
    leaves: np.ndarray
    q: torch.Tensor
    page_size: int
    leaf_lens: np.ndarray | None = None
    page_seed: int = 0
    spare_pages: int = 3
    reserve: int = 0  # tokens of room in every leaf

    @property
    def lens(self) -> np.ndarray:
        return np.array([len(rows) for rows in self.k], np.int64)

    def tables(self) -> tuple[np.ndarray, int]:
        """block_table [N, max_pages] over shuffled pages, and the number of pages of the cache."""
        room = self.lens.copy()
        room[np.unique(self.leaves)] += self.reserve
        counts = -(-room // self.page_size)
        total = int(counts.sum()) + self.spare_pages
        pages = np.random.default_rng(self.page_seed).permutation(total)
        table = np.full((len(self.k), max(1, counts.max(initial=1)) + 1), UNUSED_PAGE, np.int32)
        for n, end in enumerate(np.cumsum(counts)):
            table[n, : counts[n]] = pages[end - counts[n] : end]
        return table, total

    def caches(self) -> tuple[torch.Tensor, torch.Tensor]:
        """k_cache and v_cache, slices of larger tensors, NaN wherever no token is."""
        table, total = self.tables()
        heads, dim = self.q_heads()[1], self.q.shape[2]
        pool = torch.full((2, total, heads + 2, self.page_size, dim), torch.nan, dtype=self.q.dtype)
        caches = pool[0, :, :heads], pool[1, :, 1 : heads + 1]
        for cache, rows in zip(caches, (self.k, self.v), strict=True):
            for n, row in enumerate(rows):
                pages = torch.from_numpy(table[n].astype(np.int64))
                token = torch.arange(len(row))
                cache[pages[token // self.page_size], :, token % self.page_size] = row
        return caches

    def q_heads(self) -> tuple[int, int]:
        return self.q.shape[1], self.k[0].shape[1]

    def plan(self, **kwargs) -> mf.TreeAttentionPlan:
        heads, kv_heads = self.q_heads()
        return mf.plan_tree_attention(
            self.parents,
            self.lens,
            self.tables()[0],
            self.leaves,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=self.q.shape[2],
            page_size=self.page_size,
            leaf_lens=self.leaf_lens,
            **kwargs,
        )

    def run(self, plan: mf.TreeAttentionPlan | None = None, **kwargs):
        """(out, lse) of the op, from poisoned out and workspace."""
        plan = self.plan() if plan is None else plan
        out = torch.full_like(padded(self.q), torch.nan)[:, :, : self.q.shape[2]]
        workspace = torch.full((plan.workspace_numel,), torch.nan)
        return mf.tree_attention(
            padded(self.q), *self.caches(), plan, return_lse=True, out=out, workspace=workspace,
            **kwargs,
        )  # fmt: skip

    def path(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of query i's path, root first: [tokens, kv_heads, dim]."""
        n = int(self.leaves[i])
        seen = len(self.k[n]) if self.leaf_lens is None else int(self.leaf_lens[i])
        k, v = [self.k[n][:seen]], [self.v[n][:seen]]
        while (n := int(self.parents[n])) >= 0:
            k.append(self.k[n])
            v.append(self.v[n])
        return torch.cat(k[::-1]), torch.cat(v[::-1])

    def want(self, scale: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """(out, lse) in float64, query by query from the segments' own rows, without a plan."""
        rows = [_attend(self.q[i].double(), *self.path(i), scale) for i in range(len(self.leaves))]
        shape = (0, *self.q.shape[1:])
        if not rows:
            return torch.empty(shape).double(), torch.empty(shape[:2]).double()
        return torch.stack([out for out, _ in rows]), torch.stack([lse for _, lse in rows])

    def only(self, queries: list[int]) -> "Forest":
        """The same forest with a part of the queries, in the order given."""
        lens = None if self.leaf_lens is None else self.leaf_lens[queries]
        return replace(self, leaves=self.leaves[queries], q=self.q[queries], leaf_lens=lens)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    group = q.shape[0] // k.shape[1]
    k, v = (x.double().repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
    scores = (k @ q[:, :, None])[..., 0] * scale  # [heads, tokens]
    if k.shape[1] == 0:
        return torch.zeros_like(q), torch.full(q.shape[:1], -torch.inf).double()
    return (scores.softmax(-1)[:, None] @ v)[:, 0], scores.logsumexp(-1)


def baseline_attention(forest: Forest, want: torch.Tensor) -> torch.Tensor:
    """The baseline: PyTorch in the inputs' dtype, a query and its gathered path at a time.

    PyTorch's own attention and the formula written out; in float32 also the formula with a running
    sum over the tokens. Of them the one furthest from `want`: which library multiplies on a
    machine, and luck with a few numbers, decide how exact a single one is.
    """
    kinds = [_fused, _written_out] + [_running_sum] * (forest.q.dtype == torch.float32)
    forms = [_baseline(forest, form) for form in kinds]
    return max(forms, key=lambda out: (out.double() - want).abs().max().item())


def _baseline(forest: Forest, form: Callable) -> torch.Tensor:
    rows = torch.zeros_like(forest.q)
    for i in range(len(forest.leaves)):
        k, v = (x.transpose(0, 1)[None] for x in forest.path(i))
        if k.shape[2]:
            rows[i] = form(forest.q[i][None, :, None], k, v)[0, :, 0]
    return rows


def _fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def _written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(-1) @ v


def _running_sum(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """One rounding for each product and each sum, in the order of memory."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.zeros(q.shape[1], k.shape[2])
    for d in range(q.shape[3]):
        scores += q[0, :, :, d] * k[0, :, :, d]
    weights = (scores * q.shape[3] ** -0.5).softmax(-1)
    out = torch.zeros(q.shape[1], q.shape[3])
    for t in range(k.shape[2]):
        out += weights[:, t, None] * v[0, :, t]
    return out[None, :, None]


def padded(x: torch.Tensor) -> torch.Tensor:
    """x with strides that are neither contiguous nor in the order of its dimensions."""
    room = torch.full((x.shape[1], x.shape[0] + 1, x.shape[2] + 16), torch.nan, dtype=x.dtype)
    view = room[:, : x.shape[0], : x.shape[2]].transpose(0, 1)
    view.copy_(x)
    return view


def random_forest(
    seed: int,
    *,
    nodes: int = 10,
    queries: int = 6,
    heads: int = 7,
    kv_heads: int = 1,
    head_dim: int = 32,
    page_size: int = 16,
    dtype: torch.dtype = torch.float32,
    max_len: int = 40,
    partial: bool = False,
    roots: float = 0.2,
) -> Forest:
    """A forest of `nodes` segments of 0..max_len tokens; `partial` draws leaf_lens too."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    parents = np.array(
        [-1 if rng.random() < roots else int(rng.integers(-1, n)) for n in range(nodes)]
    )
    lens = rng.integers(0, max_len + 1, nodes) * (rng.random(nodes) > 0.15)
    rows = [torch.randn(2, int(n), kv_heads, head_dim).to(dtype) for n in lens]
    leaves = rng.integers(0, nodes, queries)
    return Forest(
        parents=parents,
        k=[pair[0] for pair in rows],
        v=[pair[1] for pair in rows],
        leaves=leaves,
        q=torch.randn(queries, heads, head_dim).to(dtype),
        page_size=page_size,
        leaf_lens=rng.integers(0, lens[leaves] + 1) if partial else None,
        page_seed=seed + 1,
    )
