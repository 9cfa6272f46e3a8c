"""The launchers' choices against the others they could have made.

The choices are small pure functions (kernels/confidence_launch: shares_of; kernels/lm_head_launch:
tiles_of, splits; kernels/lm_head_confidence: where a library's product takes over;
kernels/tree_attention: tile; ops/attention/work_items: query heads of an item, how many items are
enough). No result depends on most of them, so this is about time alone. A row has the microseconds
of every choice that it compares.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from bench.common.trees import HEADS, Tree
from bench.gpu.machine import Case, Machine
from bench.gpu.parts.inputs import (
    AttentionInputs,
    attention_inputs,
    forests,
    keys_on,
    lm_head_inputs,
    random_logits,
)
from bench.gpu.parts.times import FILTERS, HEAD, VOCAB, attention_work
from marco_fast.kernels import (
    confidence_launch,
    launch,
    lm_head_confidence,
    sample_confidence,
    topk_confidence,
)
from marco_fast.kernels import tree_attention as attention_kernels
from marco_fast.kernels.confidence_scan import Shares
from marco_fast.kernels.lm_head_launch import tiles_of
from marco_fast.ops.attention import attend as attend_ops
from marco_fast.ops.attention import work_items as items
from marco_fast.ops.confidence.options import Head, Sampling, Scoring
from marco_fast.ops.confidence.sample import TopKConfidence, empty_samples

Calls = Sequence[Callable[[], object]]


def compare(machine: Machine, choices: dict[str, Calls], own: str, floor: float | None) -> dict:
    """Time every choice in turns; the row also names the launcher's own choice and the best one."""
    timings = machine.time(*choices.values(), rounds=7)
    times = {name: each.median * 1e6 for name, each in zip(choices, timings, strict=True)}
    best = min(times, key=times.__getitem__)
    return {
        "us": times[own], "own": own, "best": best, "best_us": times[best], "floor_us": floor,
        "choices": times,
    }  # fmt: skip


def patched(module: object, name: str, value: object, call: Callable[[], object]) -> Callable:
    """`call` with one constant or function of a launcher replaced."""

    def run() -> object:
        with mock.patch.object(module, name, value):
            return call()

    return run


def confidence(machine: Machine) -> Iterator[Case]:
    """topk_confidence and sample_confidence by blocks per program and by warps."""
    batches = (2,) if machine.dry else (32, 256, 1024, 1)
    for batch, sample in itertools.product(batches, (False, True)):
        name = f"{'sample' if sample else 'topk'}_confidence {batch}"
        yield Case(name, partial(sweep_confidence, machine, batch, sample))


def sweep_confidence(machine: Machine, batch: int, sample: bool) -> dict:
    vocab_size = 4112 if machine.dry else VOCAB
    nbytes = 2 * batch * vocab_size
    inputs = machine.rotating(lambda: random_logits(machine, batch, vocab_size), nbytes)
    results = empty_samples(batch, 5, machine.device)
    keys = keys_on(machine, batch)
    sampling = Sampling(0.7, 0.95, 0.0, 0, *keys.values(), None, None, None, False, False)
    scores = TopKConfidence(*(getattr(results, name) for name in TopKConfidence._fields))

    def call(x: torch.Tensor, shares: Shares) -> None:
        if sample:
            sample_confidence.sample_confidence(x, sampling, results, shares=shares)
        else:
            scoring = Scoring(1.0, False)
            topk_confidence.topk_confidence(x, keys["seeds"], scoring, scores, shares=shares)

    processors = launch.target_of(machine.device).processors
    own = confidence_launch.shares_of(batch, vocab_size, processors)
    choices: dict[str, Calls] = {}
    for each in (1, 2, 3, 5, 10, 19, 38):
        shares = Shares(own.blocks, -(-own.blocks // each), each)
        choices[f"{each} blocks"] = [partial(call, x, shares) for x in inputs]
    named = f"{own.blocks_per_split} blocks"
    choices.setdefault(named, [partial(call, x, own) for x in inputs])
    for warps in (4,) if sample else (2, 4):
        choices[f"{named}, {warps} warps"] = [
            patched(confidence_launch, "NUM_WARPS", warps, partial(call, x, own)) for x in inputs
        ]
    return compare(machine, choices, named, machine.floor_us(nbytes))


def lm_head(machine: Machine) -> Iterator[Case]:
    """lm_head_confidence by entries of a tile, stages and programs, and as a library's product."""
    for batch in (2,) if machine.dry else (64, 16, 1, 96, 128):
        yield Case(f"lm_head_confidence {batch}", partial(sweep_lm_head, machine, batch))


def sweep_lm_head(machine: Machine, batch: int) -> dict:
    size, vocab_size = (64, 304) if machine.dry else HEAD
    nbytes = 2 * vocab_size * size
    inputs = machine.rotating(lambda: lm_head_inputs(machine, batch, vocab_size, size), nbytes)
    keys = keys_on(machine, batch)
    sampling = Sampling(
        *FILTERS.values(), 0.0, 0, *keys.values(), None, None, None, False, False
    )  # fmt: skip
    results = empty_samples(batch, 5, machine.device)
    heads = [Head(*each, None, torch.float32) for each in inputs]

    def calls(**choice: object) -> Calls:
        return [
            partial(lm_head_confidence.lm_head_confidence, head, sampling, results, **choice)
            for head in heads
        ]

    target = launch.target_of(machine.device)
    scan, logits = tiles_of(target.arch, heads[0])
    choices: dict[str, Calls] = {"own": calls()}
    tiles = ((128, 4), (128, 3), (128, 5), (64, 4), (64, 6))
    for entries, stages in tiles[:1] if machine.dry else tiles:
        for each in (1, 2):
            tile = scan._replace(block_v=entries, stages=stages)
            splits = max(1, each * target.processors // -(-batch // scan.block_b))
            choices[f"{entries} entries, {stages} stages, {each} per processor"] = calls(
                tiles=(tile, logits), splits=splits
            )
    return compare(
        machine, choices, "own", machine.floor_us(nbytes, 2.0 * batch * size * vocab_size)
    )


def attention(machine: Machine) -> Iterator[Case]:
    """tree_attention by rows of an item, enough items and stages; by page and chunk size."""
    for name, tree in forests(machine).items():
        yield Case(f"tree_attention {name}", partial(sweep_attention, machine, tree))


def sweep_attention(machine: Machine, tree: Tree) -> dict:
    model = "nano-marco" if machine.dry else "qwen2-7b"

    def layers(page_size: int) -> list[AttentionInputs]:
        first = attention_inputs(machine, model, tree, page_size=page_size)
        others = range(machine.sets(attention_work(model, first.plan)[0]) - 1)
        options = {"page_size": page_size, "plan": first.plan}
        return [first, *(attention_inputs(machine, model, tree, **options) for _ in others)]

    inputs = layers(16)
    nbytes, flop, _ = attention_work(model, inputs[0].plan)
    own = f"auto rows, {items.ENOUGH_ITEMS} items"
    choices: dict[str, Calls] = {own: attend(inputs, model)}
    for rows, enough in () if machine.dry else itertools.product((16, 32), (256, 512, 1024)):
        choices[f"{rows} rows, {enough} items"] = attend(
            inputs, model, tile_query_heads=rows, enough_items=enough
        )
    for stages in () if machine.dry else (3, 4):
        choices[f"{stages} stages"] = [
            patched(attention_kernels, "tile", with_stages(stages), call)
            for call in attend(inputs, model)
        ]
    for page_size in () if machine.dry else (16, 32, 64):
        paged = inputs if page_size == 16 else layers(page_size)
        for chunk in (128, 256):
            with mock.patch.object(items, "chunk_tokens", return_value=chunk):
                choices[f"pages of {page_size}, chunks of {chunk}"] = attend(paged, model)
    return compare(machine, choices, own, machine.floor_us(nbytes, flop))


def with_stages(stages: int) -> Callable:
    tile = attention_kernels.tile
    return lambda *args: tile(*args)._replace(stages=stages)


def attend(layers: list[AttentionInputs], model: str, **choice: int) -> Calls:
    """A launch per layer, over items that were made with these options of work_items."""
    heads, kv_heads, dim = HEADS[model]
    q, _, _, plan = layers[0]
    sizes = (heads, kv_heads, dim, plan.page_size)
    made = items.work_items(plan.arrays, heads=sizes, device=q.device, **choice)
    space = torch.empty(max(1, made.sizes.num_partials * heads * (dim + 2)), device=q.device)
    held: Any = SimpleNamespace(items=lambda device: made)
    options = attend_ops.AttentionOptions(dim**-0.5, space)
    result = attend_ops.AttentionResult(torch.empty_like(q), None)
    return [
        partial(
            attention_kernels.tree_attention,
            attend_ops.AttentionInputs(each.q, each.k_cache, each.v_cache, held), options, result,
        )
        for each in layers
    ]  # fmt: skip
