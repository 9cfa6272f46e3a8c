"""tree_attention, append_kv and the advance of a plan against float64."""

import itertools
from collections.abc import Iterator
from functools import partial

import torch

import marco_fast as mf
from bench.common.trees import (
    HEADS,
    PAGE,
    Tree,
    many_small_nodes,
    private,
    prompt_and_branches,
)
from bench.common.trees import search as search_tree
from bench.gpu.machine import Case, Machine
from bench.gpu.parts.inputs import (
    BACKEND,
    FLOATS,
    attention_inputs,
)
from tests.support.tolerance import assert_close, assert_lse_close


def check_attention(machine: Machine, model: str, tree: Tree, dtype: torch.dtype) -> dict:
    """tree_attention against float64; outputs and workspace are full of NaN before the call."""
    q, k_cache, v_cache, plan = attention_inputs(machine, model, tree, dtype, room=4.0)
    out = torch.full_like(q, torch.nan)
    workspace = torch.full((plan.workspace_numel,), torch.nan, device=machine.device)
    out, lse = mf.tree_attention(
        q, k_cache, v_cache, plan, return_lse=True, out=out, workspace=workspace, backend=BACKEND
    )
    if machine.recording:
        return {}
    want, want_lse = mf.reference.tree_attention(q, k_cache, v_cache, plan, dtype=torch.float64)
    baseline, _ = mf.reference.tree_attention(q, k_cache, v_cache, plan, dtype=torch.float32)
    assert_close(out.cpu(), want.cpu(), baseline.to(dtype).cpu(), name=f"{model} {dtype}")
    assert_lse_close(lse.cpu(), want_lse.cpu())
    return {"queries": len(q), "largest_error": (out.double() - want).abs().max().item()}


def check_append(machine: Machine, model: str) -> dict:
    """append_kv writes every slot that was named, and no other."""
    _, heads, dim = HEADS[model]
    k, v = machine.normal(2, 3, heads, dim, dtype=torch.bfloat16)
    k_cache, v_cache = caches = machine.normal(2, 5, heads, PAGE, dim, dtype=torch.bfloat16)
    want = caches.clone()
    slots = torch.tensor([17, -1, 79], device=machine.device)
    mf.append_kv(k, v, k_cache, v_cache, slots, backend=BACKEND)
    for token, slot in ((0, 17), (2, 79)):
        for cache, new in zip(want, (k, v), strict=True):
            cache[slot // PAGE, :, slot % PAGE] = new[token]
    if not machine.recording:
        assert torch.equal(caches, want), "other slots than those named were written"
    return {"tokens": 3}


def check_advance(machine: Machine) -> dict:
    """plan.advance on the device: lengths grow where `active` says so."""
    from marco_fast.kernels.tree_attention import advance

    lens = torch.arange(300, dtype=torch.int32, device=machine.device)
    order = lens.flip(0).contiguous()
    active = (lens % 3 == 0).flip(0).contiguous()  # in the caller's order
    want = lens + 1 + active[order.long()].int()
    advance(lens, order, None)
    advance(lens, order, active)
    if not machine.recording:
        assert torch.equal(lens, want), "other lengths than those of the active queries grew"
    return {"queries": 300}


def trees(machine: Machine) -> dict[str, Tree]:
    """Shared prompts, nothing shared, a search, very many small nodes, empty segments."""
    if machine.dry:
        return {"prompt 20 x 3 x 5": prompt_and_branches(20, 3, 5)}
    return {
        "prompt 1024 x 16 x 64": prompt_and_branches(1024, 16, 64),
        "prompt 8192 x 64 x 17": prompt_and_branches(8192, 64, 17),
        "nothing shared 16 x 1088": private(16, 1088),
        "search 4 x 8": search_tree(4, 8, 6, 32, 400),
        "nodes of 1-16": many_small_nodes(),
        "empty segments": Tree([-1, 0, 0, 1], [0, 33, 0, 0], [0, 1, 2, 3]),
    }


def attention(machine: Machine) -> Iterator[Case]:
    """tree_attention with the heads of each target model; float16 with one of them."""
    models = {"nano-marco": FLOATS[:1]}
    if not machine.dry:
        models = {"qwen2-7b": FLOATS, "llama-1b": FLOATS[:2], "llama-3b": FLOATS[:1], **models}
    for model, dtypes in models.items():
        for (name, tree), dtype in itertools.product(trees(machine).items(), dtypes):
            case = f"tree_attention {model} {name} {str(dtype)[6:]}"
            yield Case(case, partial(check_attention, machine, model, tree, dtype))
