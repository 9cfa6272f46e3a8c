"""Inputs of the cases: logits, LM heads, forests and their caches."""

from typing import NamedTuple

import torch

import marco_fast as mf
from bench.common.trees import (
    HEADS,
    PAGE,
    Tree,
    many_small_nodes,
    private,
    prompt_and_branches,
    tables,
)
from bench.common.trees import search as search_tree
from bench.gpu.machine import Machine
from tests.support.draws import keyed
from tests.support.hostile import logits_of

__all__ = [
    "BACKEND",
    "FLOATS",
    "AttentionInputs",
    "attention_inputs",
    "forests",
    "hostile",
    "keys_on",
    "lm_head_inputs",
    "random_logits",
]

BACKEND = "triton"
FLOATS = (torch.bfloat16, torch.float32, torch.float16)


class AttentionInputs(NamedTuple):
    """One layer's queries and caches, and the plan over them."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    plan: mf.TreeAttentionPlan


def random_logits(
    machine: Machine, rows: int, vocab_size: int, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """Logits with a standard deviation of 3."""
    return machine.normal(rows, vocab_size, dtype=dtype, scale=3.0)


def hostile(
    machine: Machine, kind: str, rows: int, vocab_size: int, dtype: torch.dtype
) -> torch.Tensor:
    """Logits of a kind that breaks kernels, on the device."""
    if machine.recording:
        return torch.empty(rows, vocab_size, dtype=dtype)
    return logits_of(kind, rows, vocab_size, dtype).to(machine.device)


def keys_on(machine: Machine, rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """seeds and positions on the device."""
    return {key: x.to(machine.device) for key, x in keyed(rows, seed).items()}


def lm_head_inputs(
    machine: Machine, rows: int, vocab_size: int, size: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden and weight whose logits have a standard deviation of 3."""
    hidden = machine.normal(rows, size, dtype=dtype)
    return hidden, machine.normal(vocab_size, size, dtype=dtype, scale=3 / size**0.5)


def attention_inputs(
    machine: Machine,
    model: str,
    tree: Tree,
    dtype: torch.dtype = torch.bfloat16,
    *,
    room: float = 1.0,
    page_size: int = PAGE,
    plan: mf.TreeAttentionPlan | None = None,
) -> AttentionInputs:
    """Caches hold NaN in every slot that no segment owns; `plan` may come from an earlier call."""
    heads, num_kv_heads, dim = HEADS[model]
    table, pages = tables(tree, page_size)
    shape = (2, pages + 1, num_kv_heads, page_size, dim)
    if machine.recording:
        caches = torch.empty(shape, dtype=dtype)
    else:
        caches = torch.full(shape, torch.nan, dtype=dtype, device=machine.device)
        lens = torch.tensor(tree.lens)
        segment = torch.repeat_interleave(torch.arange(len(lens)), lens)
        token = torch.arange(len(segment)) - (lens.cumsum(0) - lens)[segment]
        page = torch.from_numpy(table)[segment, token // page_size].long().to(machine.device)
        offset = (token % page_size).to(machine.device)
        for cache in caches:
            cache[page, :, offset] = machine.normal(len(segment), num_kv_heads, dim, dtype=dtype)
    plan = plan or mf.plan_tree_attention(
        tree.parents, tree.lens, table, tree.leaves, num_heads=heads, num_kv_heads=num_kv_heads,
        head_dim=dim, page_size=page_size, device=machine.device, room=room,
    )  # fmt: skip
    q = machine.normal(len(tree.leaves), heads, dim, dtype=dtype)
    return AttentionInputs(q, caches[0], caches[1], plan)


def forests(machine: Machine) -> dict[str, Tree]:
    """The shapes of a search, from everything shared to nothing."""
    if machine.dry:
        return {"prompt 20 x 3 x 5": prompt_and_branches(20, 3, 5)}
    return {
        "prompt 1024 x 8 x 64": prompt_and_branches(1024, 8, 64),
        "prompt 1024 x 64 x 64": prompt_and_branches(1024, 64, 64),
        "prompt 2048 x 256 x 64": prompt_and_branches(2048, 256, 64),
        "wide root 32768 x 64 x 1": prompt_and_branches(32768, 64, 1),
        "nothing shared 64 x 8192": private(64, 8192),
        "search 8 x 16 depth 12": search_tree(8, 16, 12, 32, 1000),
        "search 32 x 16 depth 12": search_tree(32, 16, 12, 32, 1000),
        "nodes of 1-16": many_small_nodes(),
    }
