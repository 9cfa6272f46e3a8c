"""A whole decoding step of a 7B model: its products, its launches in one CUDA graph, the engine.

The weights are random, so nothing has to be downloaded: a step takes as long as with trained ones.
`Layers` is a decoder with as few launches as PyTorch allows around our kernels; it lacks kernels
for the norms, the rotation and the gate. tests/bench/test_gpu_parts.py compares it with
transformers.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import linear, silu

import marco_fast as mf
from bench.common.trees import PAGE, Tree, prompt_and_branches, tables
from bench.common.trees import search as search_tree
from bench.gpu.machine import Case, Machine
from bench.gpu.parts.inputs import BACKEND, keys_on
from bench.gpu.parts.skinny import skinny_product
from bench.gpu.parts.sweeps import compare
from bench.gpu.parts.times import FILTERS

__all__ = ["Layers", "Shape", "captured", "engine", "nano_search", "products"]


class Shape(NamedTuple):
    """Sizes of a decoder."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    num_kv_heads: int
    dim: int
    vocab_size: int


SHAPES = {
    "7b": Shape(28, 3584, 18944, 28, 4, 128, 152064),
    "1b": Shape(16, 2048, 8192, 32, 8, 64, 128256),
}
TINY = Shape(2, 64, 128, 4, 2, 16, 304)


def products(machine: Machine) -> Iterator[Case]:
    """The four products of a 7B layer in bfloat16, by the library and by skinny.py, which cuts K
    into parts and leaves the sum of the parts to a later kernel."""
    shape = TINY if machine.dry else SHAPES["7b"]
    joined = (shape.heads + 2 * shape.num_kv_heads) * shape.dim
    sizes = {
        "qkv": (shape.hidden, joined),
        "o": (shape.heads * shape.dim, shape.hidden),
        "gate_up": (shape.hidden, 2 * shape.intermediate),
        "down": (shape.intermediate, shape.hidden),
    }
    for rows in (2,) if machine.dry else (64, 256, 512, 128, 192, 384):
        for name, (inner, outer) in sizes.items():
            case = f"product {name} {rows} x {inner} x {outer}"
            yield Case(case, partial(time_product, machine, rows, inner, outer))


def time_product(machine: Machine, rows: int, inner: int, outer: int) -> dict:
    nbytes = 2 * inner * outer
    x = machine.normal(rows, inner, dtype=torch.bfloat16)
    weights = machine.rotating(lambda: machine.normal(outer, inner, dtype=torch.bfloat16), nbytes)
    choices = {"library": [partial(linear, x, weight) for weight in weights]}
    if machine.recording:  # a library's launches are not recorded
        del choices["library"]
    for splits in (1, 2) if machine.dry else (1, 2, 4, 8):
        out = skinny_product(x, weights[0], splits)
        choices[f"skinny, {splits} parts"] = [
            partial(skinny_product, x, weight, splits, out) for weight in weights
        ]
    own = next(iter(choices))
    return compare(machine, choices, own, machine.floor_us(nbytes, 2.0 * rows * inner * outer))


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [T, heads, dim] by cos and sin [T, dim], half against half."""
    left, right = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-right, left], -1) * sin[:, None]


class Layers:
    """The layers of a Qwen2 or Llama, QKV and gate with up joined, over a paged cache of trees.

    Args:
        shape: the sizes.
        weights: of each layer by name: norm1, qkv, bias (or None), o, norm2, gate_up, down.
        embed, norm: of the model.
        cos, sin: [positions, dim].
    """

    def __init__(
        self,
        shape: Shape,
        weights: list[dict],
        embed: torch.Tensor,
        norm: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *,
        eps: float = 1e-6,
        backend: str | None = BACKEND,
    ) -> None:
        self.shape, self.weights, self.embed, self.norm = shape, weights, embed, norm
        self.cos, self.sin, self.eps, self.backend = cos, sin, eps, backend

    def step(
        self,
        token: torch.Tensor,
        position: torch.Tensor,
        slots: torch.Tensor,
        caches: list[torch.Tensor],
        plan: mf.TreeAttentionPlan,
        workspace: torch.Tensor,
    ) -> torch.Tensor:
        """Hidden states [T, hidden] after the last norm; caches [2, pages, ...] per layer."""
        heads, num_kv_heads = self.shape.heads, self.shape.num_kv_heads
        x = self.embed[token]
        cos, sin = self.cos[position], self.sin[position]
        for w, (k_cache, v_cache) in zip(self.weights, caches, strict=True):
            h = rms_norm(x, w["norm1"], self.eps)
            qkv = linear(h, w["qkv"], w["bias"]).unflatten(1, (-1, self.shape.dim))
            q, k, v = qkv.split([heads, num_kv_heads, num_kv_heads], 1)
            mf.append_kv(rotate(k, cos, sin), v, k_cache, v_cache, slots, backend=self.backend)
            out = mf.tree_attention(
                rotate(q, cos, sin), k_cache, v_cache, plan, workspace=workspace,
                backend=self.backend,
            )  # fmt: skip
            x = torch.addmm(x, out.flatten(1), w["o"].T)
            gate, up = linear(rms_norm(x, w["norm2"], self.eps), w["gate_up"]).chunk(2, -1)
            x = torch.addmm(x, silu(gate) * up, w["down"].T)
        return rms_norm(x, self.norm, self.eps)


def random_layers(machine: Machine, shape: Shape) -> Layers:
    """Weights that keep the size of the activations."""

    def matrix(outer: int, inner: int) -> torch.Tensor:
        return machine.normal(outer, inner, dtype=torch.bfloat16, scale=inner**-0.5)

    joined = (shape.heads + 2 * shape.num_kv_heads) * shape.dim
    ones = torch.ones(shape.hidden, dtype=torch.bfloat16, device=machine.device)
    weights = [
        {
            "norm1": ones,
            "qkv": matrix(joined, shape.hidden),
            "bias": machine.normal(joined, dtype=torch.bfloat16),
            "o": matrix(shape.hidden, shape.heads * shape.dim),
            "norm2": ones,
            "gate_up": matrix(2 * shape.intermediate, shape.hidden),
            "down": matrix(shape.hidden, shape.intermediate),
        }
        for _ in range(shape.layers)
    ]
    angles = machine.normal(4096, shape.dim)
    return Layers(
        shape, weights, matrix(shape.vocab_size, shape.hidden), ones, angles.cos().bfloat16(),
        angles.sin().bfloat16(),
    )  # fmt: skip


def step_tree(machine: Machine, rows: int) -> Tree:
    """Trees of 16 branches, some 1,700 tokens each."""
    if machine.dry:
        return prompt_and_branches(20, rows, 5)
    return search_tree(rows // 16, 16, 6, 32, 600)


def captured(machine: Machine) -> Iterator[Case]:
    """A step as one CUDA graph: the layers, then lm_head_confidence."""
    models = {"tiny": TINY} if machine.dry else SHAPES
    for name, shape in models.items():
        made: list[Layers] = []
        if machine.recording:  # the launches of a layer, without its products
            shape = shape._replace(layers=1, hidden=64, intermediate=64, vocab_size=4096)
        for rows in (3,) if machine.dry else (64, 256, 512):
            yield Case(f"step {name} {rows}", partial(time_step, machine, shape, rows, made))


def time_step(machine: Machine, shape: Shape, rows: int, made: list[Layers]) -> dict:
    """`made` keeps the model from row to row."""
    layers = made[0] if made else random_layers(machine, shape)
    made[:] = [layers]
    tree = step_tree(machine, rows)
    table, pages = tables(tree)
    caches = [
        machine.normal(2, pages, shape.num_kv_heads, PAGE, shape.dim, dtype=torch.bfloat16)
        for _ in range(shape.layers)
    ]
    plan = mf.plan_tree_attention(
        tree.parents, tree.lens, table, tree.leaves, num_heads=shape.heads,
        num_kv_heads=shape.num_kv_heads, head_dim=shape.dim, page_size=PAGE, device=machine.device,
    )  # fmt: skip
    last = torch.tensor(
        [table[n, (tree.lens[n] - 1) // PAGE] * PAGE + (tree.lens[n] - 1) % PAGE
         for n in tree.leaves]
    )  # fmt: skip
    slots = last.long().to(machine.device)
    token = torch.arange(rows, device=machine.device)
    workspace = torch.empty(plan.workspace_numel, device=machine.device)
    head = layers.embed
    drawn = {**FILTERS, **keys_on(machine, rows), "backend": BACKEND}

    def run() -> tuple:
        hidden = layers.step(token, token, slots, caches, plan, workspace)
        return mf.lm_head_confidence(hidden, head, **drawn)

    (timing,) = machine.time([run])
    read = int(plan.segment_lens.sum())
    parameters = sum(each.numel() for w in layers.weights for each in w.values()) + head.numel()
    nbytes = 2 * parameters + 4 * read * shape.layers * shape.num_kv_heads * shape.dim
    tokens = rows / timing.median
    return {
        **timing.summary(), "floor_us": machine.floor_us(nbytes, 2.0 * parameters * rows),
        "tokens_s": tokens, "expansions_s": tokens / 32, "kv_tokens": read,
    }  # fmt: skip


def engine(machine: Machine) -> Iterator[Case]:
    """Today's engine on a 7B Qwen2 of random weights: a search of mini-steps of 32 tokens."""
    made: list = []
    for branches in (2,) if machine.dry else (64, 256):
        yield Case(f"engine 7b {branches}", partial(time_engine, machine, branches, made))


def time_engine(machine: Machine, branches: int, made: list) -> dict:
    """A search with one child per branch, so that every step has one row per branch. `made` keeps
    the model from row to row."""
    import transformers

    shape = TINY if machine.dry else SHAPES["7b"]
    folder = Path(mf.__file__).parent / "models" / "nano-marco"
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    if not made:
        config = transformers.Qwen2Config(
            hidden_size=shape.hidden, intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
            num_key_value_heads=shape.num_kv_heads, max_position_embeddings=4096,
            vocab_size=max(shape.vocab_size, len(tokenizer)),
        )  # fmt: skip
        with machine.device:
            dtype = torch.float32 if machine.dry else torch.bfloat16
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        made.append(model)
    tokens = 2**11 if machine.dry else 2**17
    with mf.Engine(
        made[0], tokenizer, name="random 7b", max_branches=branches, kv_tokens=tokens
    ) as engine:
        config = mf.SearchConfig(
            expansions=2 * branches,
            parallel=branches,
            children=branches,
            rollout_tokens=0,
            step_tokens=32,
        )
        question = "How many times does the letter r occur in strawberry?"
        mf.solve(question, engine, config)
        stats = mf.solve(question, engine, config).stats
    return {
        "tokens_s": stats.tokens_per_second,
        "expansions_s": stats.expansions_per_second,
        "us": 1e6 * branches / stats.tokens_per_second,
        "captured": False,
    }


def nano_search(machine: Machine) -> Iterator[Case]:
    """A whole search on nano-marco, by how many trees share it."""
    for trees in (1,) if machine.dry else (1, 8, 32):
        yield Case(f"search nano-marco, {trees} trees", partial(time_search, machine, trees))


def time_search(machine: Machine, trees: int) -> dict:
    question = "How many times does the letter r occur in strawberry?"
    config = mf.SearchConfig(expansions=2 if machine.dry else 32)
    with mf.Engine.from_pretrained("nano-marco", device=machine.device) as engine:
        mf.solve([question] * trees, engine, config)
        results = mf.solve([question] * trees, engine, config)
    seconds = max(result.stats.seconds for result in results)
    return {
        "answers": sorted({str(result.answer) for result in results}),
        "expansions_s": sum(result.stats.expansions for result in results) / seconds,
        "tokens_s": sum(result.stats.tokens for result in results) / seconds,
    }
