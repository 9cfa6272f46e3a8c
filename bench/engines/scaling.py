"""How a decode step grows: its time and memory against what is shared, what is not, and its floor.

python -m bench.engines.scaling [--out bench/results/cpu/scaling.json] [--quick] [--threads N]

Each point is one forest, decoded twice in turns: as a tree, and as if nothing was shared, where
every branch has its whole path for itself in one segment. Keys, values and tokens are random: the
time of a step does not depend on them. A step is Engine.sample with a finished plan. The floor
counts reads from memory and the products with weights, not those of attention: weights that stay in
a cache may be faster, and long paths are slower.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

import marco_fast as mf
from bench.common.machine import describe
from bench.common.roofline import interleaved, peak, read_bandwidth
from bench.common.trees import Tree, prompt_and_branches
from bench.engines.models import make_model
from marco_fast.engine.runner import TreeBatch

ROOT = Path(__file__).parents[2]
MODELS = ("nano-marco", "qwen2-80m")
PROMPT, OWN = 512, 64  # tokens of a question and of a branch where they do not vary
PAGE = 16
MINI_STEP = PAGE  # tokens of a node where depth varies
CONTEXT = 8192  # positions of both models
QUICK, FULL = {"rounds": 5, "budget": 0.5}, {"rounds": 15, "budget": 8.0}


class Sweep(NamedTuple):
    """One quantity that varies."""

    axis: str  # the quantity on the x axis, with its unit
    caption: str  # what is constant
    trees: dict[int, Tree]  # a forest for each x


def comb(trunk: int, own: int, branches: int) -> Tree:
    """Branches of `own` nodes that leave a trunk of `trunk` nodes evenly, below a short prompt."""
    parents, lens, leaves = [-1], [256], []
    for _ in range(trunk):
        parents.append(len(parents) - 1)
        lens.append(MINI_STEP)
    for branch in range(1, branches + 1):
        parent = branch * trunk // branches
        for _ in range(own):
            parents.append(parent)
            lens.append(MINI_STEP)
            parent = len(parents) - 1
        leaves.append(parent)
    return Tree(parents, lens, leaves)


def questions(trees: int, branches: int) -> Tree:
    """One prompt per tree, and the branches dealt out evenly among them."""
    parents = [-1] * trees + [branch % trees for branch in range(branches)]
    lens = [PROMPT] * trees + [OWN] * branches
    return Tree(parents, lens, list(range(trees, trees + branches)))


def alone(tree: Tree) -> Tree:
    """The same paths with nothing shared: a root of its own for every leaf."""
    lens = [sum(tree.lens[node] for node in tree.path(leaf)) for leaf in tree.leaves]
    return Tree([-1] * len(lens), lens, list(range(len(lens))))


# Nodes move from the branches into the trunk: the tree gets deeper and its tokens stay as many.
COMBS = [comb(32 * (6 - own), own, 32) for own in range(6, 0, -1)]
SWEEPS = {
    "branches": Sweep(
        "branches",
        f"a shared prompt of {PROMPT} tokens, {OWN} own tokens a branch",
        {n: prompt_and_branches(PROMPT, n, OWN) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)},
    ),
    "depth": Sweep(
        "depth of the tree (nodes)",
        f"32 branches, {sum(COMBS[0].lens)} unique tokens",
        {max(len(tree.path(leaf)) for leaf in tree.leaves): tree for tree in COMBS},
    ),
    "prompt": Sweep(
        "prompt (tokens)",
        f"16 branches of {OWN} own tokens",
        {n: prompt_and_branches(n, 16, OWN) for n in (128, 256, 512, 1024, 2048, 4096)},
    ),
    "trees": Sweep(
        "trees (questions); at 64 nothing is shared",
        f"64 branches in all, a prompt of {PROMPT} tokens a tree",
        {n: questions(n, 64) for n in (1, 2, 4, 8, 16, 64)},
    ),
}


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


class Placed:
    """A forest in an engine's cache, and its decode step.

    The newest token of every leaf is the one that the step computes, so that the same step can be
    taken again and again.
    """

    def __init__(self, engine: mf.Engine, tree: Tree) -> None:
        self.engine, self.tree, cache = engine, tree, engine.cache
        before = cache.used_pages
        self.nodes: list[int] = []
        for parent, tokens in zip(tree.parents, tree.lens, strict=True):
            node = cache.add_root() if parent < 0 else cache.fork(self.nodes[parent])
            cache.extend(node, tokens)
            self.nodes.append(node)
        self.kv_bytes = (cache.used_pages - before) * cache.page_bytes
        nodes = np.array(self.nodes)
        plan = mf.plan_tree_attention(
            tree.parents, cache.lengths(nodes), cache.block_table(nodes), tree.leaves,
            num_heads=engine.num_heads, num_kv_heads=engine.num_kv_heads,
            head_dim=engine.head_dim, page_size=cache.page_size,
        )  # fmt: skip
        slots = torch.stack([cache.slot_mapping(self.nodes[leaf])[-1] for leaf in tree.leaves])
        self.batch = TreeBatch(plan, slots)
        self.positions = [tokens - 1 for tokens in alone(tree).lens]
        self.tokens = np.random.default_rng(0).integers(3, 1000, len(tree.leaves)).tolist()

    def step(self) -> mf.SampledTokens:
        """Decode one token of each branch, [branches]."""
        return self.engine.sample(self.tokens, self.positions, self.batch, seeds=self.tokens)

    def path_slots(self, branch: int) -> torch.Tensor:
        """The cache slots of a branch's path, [tokens] int64."""
        path = [self.nodes[node] for node in self.tree.path(self.tree.leaves[branch])]
        return torch.cat([self.engine.cache.slot_mapping(node) for node in path])

    def numbers(self, seconds: list[float], floor: Callable[[int, int], float]) -> dict:
        """The median step, its quartiles and floor; kv_bytes are those held, in whole pages."""
        branches, unique = len(self.tree.leaves), sum(self.tree.lens)
        median, cache = statistics.median(seconds), self.engine.cache
        return {
            "seconds": _rounded(median),
            "quartiles": [_rounded(each) for each in statistics.quantiles(seconds, n=4)],
            "unique_tokens": unique,
            "path_tokens": sum(self.positions) + branches,
            "kv_bytes": self.kv_bytes,
            "tokens_per_second": _rounded(branches / median),
            "floor_seconds": _rounded(floor(unique * cache.page_bytes // PAGE, branches)),
        }


@contextmanager
def placed(engine: mf.Engine, tree: Tree) -> Iterator[Placed]:
    """The forest in the cache until the block ends."""
    forest = Placed(engine, tree)
    try:
        yield forest
    finally:
        for node in reversed(forest.nodes):
            engine.cache.release(node)


def check(engine: mf.Engine, tree: Tree) -> float:
    """Largest difference of logits, tree against separate paths, over the largest logit.

    Raises:
        AssertionError: it is more than rounding.
    """
    with placed(engine, tree) as shared, placed(engine, alone(tree)) as apart:
        for branch in range(len(tree.leaves)):
            source, target = shared.path_slots(branch), apart.path_slots(branch)
            for layer in (*engine.cache.k, *engine.cache.v):
                layer[target // PAGE, :, target % PAGE] = layer[source // PAGE, :, source % PAGE]
        one, other = shared.step(), apart.step()
    difference = float((one.lse - other.lse).abs().max() / other.lse.abs().max())
    # Rounding makes up to 5e-6; one wrong token in a path of 400 makes 1e-3 and more.
    assert difference < 1e-4, f"expected equal lse of equal paths, they differ by {difference}"
    return difference


def measure(
    engine: mf.Engine, tree: Tree, floor: Callable[[int, int], float], *, rounds: int, budget: float
) -> dict:
    """Both ways of one point, in turns.

    Args:
        floor: seconds of a step, from the bytes of KV that it reads and the number of branches.
        rounds, budget: as of `interleaved`.
    """
    with placed(engine, tree) as shared, placed(engine, alone(tree)) as apart:
        both = interleaved(shared.step, apart.step, rounds=rounds, budget=budget)
        ways = {"shared": shared.numbers(both[0], floor), "unshared": apart.numbers(both[1], floor)}
    return {"branches": len(tree.leaves), **ways}


def _make(name: str, folder: Path) -> int:
    """The model as a folder that admits CONTEXT positions; how many weights it has."""
    if name == "nano-marco":
        shutil.copytree(Path(mf.__file__).parent / "models" / name, folder)
    else:
        make_model(name.removeprefix("qwen2-"), folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    assert config["tie_word_embeddings"], "expected the embedding to be the head: all is read"
    file.write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}))
    return sum(each.numel() for each in load_file(folder / "model.safetensors").values())


@contextmanager
def loaded(name: str) -> Iterator[tuple[mf.Engine, int]]:
    """An engine with random KV and room for the largest point, and its number of weights."""
    trees = [tree for sweep in SWEEPS.values() for tree in sweep.trees.values()]
    pages = max(sum(-(-n // PAGE) for n in (*each.lens, *alone(each).lens)) for each in trees)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        count = _make(name, folder)
        with mf.Engine.from_pretrained(folder, device="cpu", kv_tokens=pages * PAGE) as engine:
            for layer in (*engine.cache.k, *engine.cache.v):
                layer.normal_()
            yield engine, count


def run_model(name: str, options: dict) -> dict:
    """Every sweep of one model, printed as it goes."""
    torch.manual_seed(0)
    with loaded(name) as (engine, count):
        threads, size = torch.get_num_threads(), engine.dtype.itemsize
        bandwidth, flops = read_bandwidth(threads), peak(engine.dtype, threads)

        def floor(kv_bytes: int, branches: int) -> float:
            return max((count * size + kv_bytes) / bandwidth, 2 * count * branches / flops)

        difference = check(engine, comb(8, 2, 4))
        sweeps = {}
        for key, sweep in SWEEPS.items():
            points = []
            for x, tree in sweep.trees.items():
                points.append({"x": x, **measure(engine, tree, floor, **options)})
                print(f"{name} {key} {line(points[-1])}", flush=True)
            sweeps[key] = {"axis": sweep.axis, "caption": sweep.caption, "points": points}
        return {
            "model": name,
            "weights": count,
            "precision": str(engine.dtype).removeprefix("torch."),
            "read_gb_s": _rounded(bandwidth / 1e9),
            "peak_gflop_s": _rounded(flops / 1e9),
            "logits_differ_by": _rounded(difference),
            "sweeps": sweeps,
        }


def line(point: dict) -> str:
    shared, unshared = point["shared"], point["unshared"]
    return (
        f"{point['x']:5}: {shared['seconds'] * 1e3:8.2f} ms, floor "
        f"{shared['floor_seconds'] * 1e3:7.2f}, unshared {unshared['seconds'] * 1e3:8.2f} ms = "
        f"{unshared['seconds'] / shared['seconds']:5.2f}x; {shared['unique_tokens']} unique of "
        f"{shared['path_tokens']} tokens, {shared['kv_bytes'] / 1e6:.1f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/cpu/scaling.json")
    parser.add_argument("--quick", action="store_true", help="nano-marco alone, few rounds")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {
        "command": "python -m bench.engines.scaling" + " --quick" * options.quick,
        **describe(),
        "threads": options.threads,
        "models": [
            run_model(name, QUICK if options.quick else FULL)
            for name in (MODELS[:1] if options.quick else MODELS)
        ],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
