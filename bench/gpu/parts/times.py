"""How long our kernels take at their key shapes, beside the floor.

Every measurement rotates through inputs that do not fit into the L2 cache together and replays a
CUDA graph, so that neither launches nor a warm cache flatter a kernel. A row has the microseconds
of the call and of its floor: the bytes that must be read over the ceiling of this run.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch

import marco_fast as mf
from bench.common.trees import HEADS, PAGE, Tree
from bench.gpu.machine import Case, Machine, Timing
from bench.gpu.parts.inputs import (
    BACKEND,
    AttentionInputs,
    attention_inputs,
    forests,
    keys_on,
    lm_head_inputs,
    random_logits,
)

VOCAB = 151936
HEAD = (3584, 152064)  # hidden size and vocabulary of a 7B Qwen2
FILTERS = {"temperature": 0.7, "top_p": 0.95}


def row(machine: Machine, timing: Timing, nbytes: float, flop: float = 0.0) -> dict:
    """The row of a call: its times, and its floor from the bytes and products that it needs."""
    return {**timing.summary(), "floor_us": machine.floor_us(nbytes, flop)}


def confidence(machine: Machine) -> Iterator[Case]:
    """topk_confidence."""
    for batch, vocab_size, dtype in confidence_shapes(machine):
        name = f"topk_confidence {batch} x {vocab_size} {str(dtype)[6:]}"
        yield Case(name, partial(time_confidence, machine, batch, vocab_size, dtype))


def confidence_shapes(machine: Machine) -> list[tuple[int, int, torch.dtype]]:
    if machine.dry:
        return [(2, 4112, torch.bfloat16)]
    shapes = [(batch, VOCAB, torch.bfloat16) for batch in (8, 64, 256, 1, 1024)]
    return [*shapes, (256, VOCAB, torch.float32)]


def time_confidence(machine: Machine, batch: int, vocab_size: int, dtype: torch.dtype) -> dict:
    nbytes = batch * vocab_size * dtype.itemsize
    ids = torch.zeros(batch, dtype=torch.int64, device=machine.device)
    inputs = machine.rotating(lambda: random_logits(machine, batch, vocab_size, dtype), nbytes)
    calls = [partial(mf.topk_confidence, x, ids, backend=BACKEND) for x in inputs]
    return row(machine, *machine.time(calls), nbytes)


def sampling(machine: Machine) -> Iterator[Case]:
    """sample_confidence, unfiltered and with top-p, with the path sums updated."""
    batches = (2,) if machine.dry else (8, 64, 256, 1)
    vocab_size = 4112 if machine.dry else VOCAB
    for batch, options in itertools.product(batches, (FILTERS, {"temperature": 1.0})):
        name = f"sample_confidence {batch} x {vocab_size} bfloat16 {told(options)}"
        yield Case(name, partial(time_sampling, machine, batch, vocab_size, options))


def told(options: dict[str, float]) -> str:
    return " ".join(f"{name} {value}" for name, value in options.items())


def draw_options(machine: Machine, batch: int, options: dict) -> dict:
    """Keyword arguments of a draw that adds to paths."""
    return {
        **options,
        **keys_on(machine, batch),
        "path_sums": torch.zeros(batch, dtype=torch.int64, device=machine.device),
        "path_counts": torch.zeros(batch, dtype=torch.int32, device=machine.device),
        "backend": BACKEND,
    }


def time_sampling(machine: Machine, batch: int, vocab_size: int, options: dict) -> dict:
    nbytes = 2 * batch * vocab_size
    drawn = draw_options(machine, batch, options)
    inputs = machine.rotating(lambda: random_logits(machine, batch, vocab_size), nbytes)
    calls = [partial(mf.sample_confidence, x, **drawn) for x in inputs]
    return row(machine, *machine.time(calls), nbytes)


def lm_head(machine: Machine) -> Iterator[Case]:
    """lm_head_confidence."""
    for batch, size, vocab_size in lm_head_shapes(machine):
        name = f"lm_head_confidence {batch} x {size} x {vocab_size} bfloat16"
        yield Case(name, partial(time_lm_head, machine, batch, size, vocab_size))


def lm_head_shapes(machine: Machine) -> list[tuple[int, int, int]]:
    if machine.dry:
        return [(2, 64, 304)]
    return [*((batch, *HEAD) for batch in (16, 64, 1, 128, 256)), (64, 2048, 128256)]


def time_lm_head(machine: Machine, batch: int, size: int, vocab_size: int) -> dict:
    nbytes = 2 * vocab_size * size
    drawn = draw_options(machine, batch, FILTERS)
    inputs = machine.rotating(lambda: lm_head_inputs(machine, batch, vocab_size, size), nbytes)
    calls = [partial(mf.lm_head_confidence, *each, **drawn) for each in inputs]
    return row(machine, *machine.time(calls), nbytes, 2.0 * batch * size * vocab_size)


def attention(machine: Machine) -> Iterator[Case]:
    """tree_attention with the heads of a 7B Qwen2, without and with room for a plan four times as
    large; the heads of other models on two forests."""
    for name, tree in forests(machine).items():
        model = "nano-marco" if machine.dry else "qwen2-7b"
        for room in (1.0, 4.0):
            case = f"tree_attention {model} {name}" + (" room 4" if room > 1 else "")
            yield Case(case, partial(time_attention, machine, model, tree, room))
    if not machine.dry:
        for model, name in itertools.product(
            ("llama-1b", "llama-3b"), ("prompt 1024 x 64 x 64", "search 32 x 16 depth 12")
        ):
            tree = forests(machine)[name]
            case = f"tree_attention {model} {name}"
            yield Case(case, partial(time_attention, machine, model, tree, 1.0))


def attention_work(model: str, plan: mf.TreeAttentionPlan) -> tuple[float, float, float]:
    """(bytes that must be moved in bfloat16, FLOP, queries per token that is read)."""
    heads, num_kv_heads, dim = HEADS[model]
    read, seen = int(plan.segment_lens.sum()), int(plan.path_lens.sum())
    nbytes = 4 * read * num_kv_heads * dim + 4 * plan.num_queries * heads * dim
    return nbytes, 4.0 * seen * heads * dim, seen / read


def attention_calls(
    machine: Machine, model: str, tree: Tree, *, room: float = 1.0, most: int = 1000
) -> tuple[list[AttentionInputs], list[Callable[[], torch.Tensor]]]:
    """Inputs that share one plan, more than the cache can hold but at most `most`, and one call
    per input."""
    first = attention_inputs(machine, model, tree, room=room)
    plan = first.plan
    others = range(machine.sets(attention_work(model, plan)[0], most) - 1)
    sets = [first, *(attention_inputs(machine, model, tree, plan=plan) for _ in others)]
    out = torch.empty_like(first.q)
    workspace = torch.empty(plan.workspace_numel, device=machine.device)
    options = {"out": out, "workspace": workspace, "backend": BACKEND}
    return sets, [
        partial(mf.tree_attention, each.q, each.k_cache, each.v_cache, plan, **options)
        for each in sets
    ]


def time_attention(machine: Machine, model: str, tree: Tree, room: float) -> dict:
    sets, calls = attention_calls(machine, model, tree, room=room)
    nbytes, flop, rho = attention_work(model, sets[0].plan)
    timed = row(machine, *machine.time(calls), nbytes, flop)
    return {**timed, "rho": rho, "queries": len(sets[0].q), "bytes": nbytes}


def append_kv(machine: Machine) -> Iterator[Case]:
    """append_kv of one layer of a 7B Qwen2."""
    for tokens in (3,) if machine.dry else (64, 1024):
        yield Case(f"append_kv {tokens} tokens", partial(time_append, machine, tokens))


def time_append(machine: Machine, tokens: int) -> dict:
    heads, dim = HEADS["qwen2-7b"][1:]
    k, v = machine.normal(2, tokens, heads, dim, dtype=torch.bfloat16)
    caches = machine.normal(2, 4 * tokens, heads, PAGE, dim, dtype=torch.bfloat16)
    slots = torch.randperm(4 * tokens * PAGE)[:tokens].to(machine.device)
    calls = [partial(mf.append_kv, k, v, caches[0], caches[1], slots, backend=BACKEND)]
    return row(machine, *machine.time(calls), 4 * k.nbytes)
