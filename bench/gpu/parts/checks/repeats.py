"""A decode step replayed and repeated, and rows alone and in a batch, bit for bit."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

import marco_fast as mf
from bench.common.trees import (
    prompt_and_branches,
    tables,
)
from bench.gpu.machine import Case, Machine
from bench.gpu.parts.checks.results import assert_same, same_bits
from bench.gpu.parts.inputs import (
    BACKEND,
    attention_inputs,
    keys_on,
    lm_head_inputs,
    random_logits,
)

Step = Callable[[], tuple]


def decode_step(machine: Machine) -> tuple[Step, Callable[[], None]]:
    """(a step that returns new tensors at each call, a function that changes every input)."""
    vocab_size, rows = (4112, 2) if machine.dry else (151936, 8)
    tree = prompt_and_branches(40, rows, 20)
    model = "nano-marco" if machine.dry else "qwen2-7b"
    q, k_cache, v_cache, plan = attention_inputs(machine, model, tree, room=4.0)
    table, _ = tables(tree)
    workspace = torch.empty(plan.workspace_numel, device=machine.device)
    out = torch.empty_like(q)
    logits = torch.empty(rows, vocab_size, device=machine.device, dtype=torch.bfloat16)
    hidden, weight = lm_head_inputs(machine, rows, 304 if machine.dry else vocab_size, 64)
    keys = keys_on(machine, rows)
    options = {
        "temperature": torch.full((rows,), 0.8, device=machine.device),
        "top_p": torch.full((rows,), 0.95, device=machine.device),
    }

    def step() -> tuple:
        mf.tree_attention(q, k_cache, v_cache, plan, out=out, workspace=workspace, backend=BACKEND)
        drawn = mf.sample_confidence(logits, temperature=0.8, top_p=0.95, **keys, backend=BACKEND)
        scored = mf.topk_confidence(logits, keys["positions"] % vocab_size, backend=BACKEND)
        headed = mf.lm_head_confidence(hidden, weight, **options, **keys, backend=BACKEND)
        unfiltered = mf.lm_head_confidence(hidden, weight, **keys, backend=BACKEND)
        return (out.clone(), *drawn, *scored, *headed, *unfiltered)

    def change() -> None:
        # Other lengths and another order of the queries, planned in place.
        cut = [int(torch.randint(1, n + 1, ())) for n in tree.lens]
        plan.update(tree.parents, cut, table, torch.randperm(rows) + 1)
        if machine.recording:
            return
        q.normal_()
        for cache in (k_cache, v_cache):
            cache.copy_(torch.where(cache.isnan(), cache, torch.randn_like(cache)))
        logits.normal_(0.0, 3.0)
        hidden.normal_()
        keys["positions"] += 1
        keys["seeds"] *= 31

    change()
    return step, change


def check_replays(machine: Machine, replays: int) -> dict:
    """A captured step, replayed after every input changed in place, equals the same step eager."""
    step, change = decode_step(machine)
    results: list[tuple] = []
    step()
    if machine.mode == "gpu":
        replay: Callable[[], None] = machine.capture([lambda: results.append(step())]).replay
    else:
        replay = lambda: results.append(step())  # noqa: E731
    for _ in range(replays):
        change()
        replay()
        machine.wait()
        for got, want in zip(results[-1], step(), strict=True):
            if not machine.recording:
                assert same_bits(got, want), "a replay differs from the step itself"
    return {"replays": replays}


def check_repeats(machine: Machine, repeats: int) -> dict:
    """A step gives the same bits again and again."""
    step, _ = decode_step(machine)
    first = step()
    for i in range(1 if machine.recording else repeats):
        if machine.out_of_time:
            return {"repeats": i}
        assert_same(machine, step(), first, slice(None))
    return {"repeats": repeats}


def check_batch_sizes(machine: Machine, size: int) -> dict:
    """Rows of topk_confidence and lm_head_confidence have the same bits in any batch."""
    most, sizes = (3, (1, 2)) if machine.dry else (64, (1, 2, 8, 31))
    logits = random_logits(machine, most, 4112 if machine.dry else 151936, torch.float32)
    ids = torch.zeros(most, dtype=torch.int64, device=machine.device)
    whole = mf.topk_confidence(logits, ids, backend=BACKEND)
    hidden, weight = lm_head_inputs(machine, most, 304 if machine.dry else 151936, size)
    for n in sizes:
        part = mf.topk_confidence(logits[:n], ids[:n], backend=BACKEND)
        assert_same(machine, part, whole, slice(0, n))
    for options in ({}, {"temperature": 0.7, "top_p": 0.95}):
        keys = keys_on(machine, most)
        drawn = mf.lm_head_confidence(hidden, weight, **options, **keys, backend=BACKEND)
        for n in sizes:
            own = {key: x[:n] for key, x in keys.items()}
            part = mf.lm_head_confidence(hidden[:n], weight, **options, **own, backend=BACKEND)
            assert_same(machine, part, drawn, slice(0, n))
    return {"sizes": len(sizes)}


def graphs(machine: Machine) -> Iterator[Case]:
    """Replays after every input changed."""
    yield Case("replays", partial(check_replays, machine, 50 if machine.mode == "gpu" else 1))


def repeats(machine: Machine) -> Iterator[Case]:
    """A thousand repeats of the split paths, and batches of every size, bit for bit."""
    yield Case("batch sizes", partial(check_batch_sizes, machine, 64 if machine.dry else 3584))
    yield Case("repeats", partial(check_repeats, machine, 1000 if machine.mode == "gpu" else 1))
