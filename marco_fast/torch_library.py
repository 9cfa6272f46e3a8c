"""The operations as torch.library operators: torch.ops.marco_fast.*, registered by this import.

For torch.compile, torch.export and CUDA graphs. Each operator is the function of the same name in
marco_fast.ops, with its checks, errors and results, in a form that a graph can hold: results are
plain tuples in field order, sampling options are tensors, a plan is one int32 tensor.

    packed = packed_plan(plan)  # the same tensor before and after plan.advance and plan.update
    out, lse = torch.ops.marco_fast.tree_attention(q, k_cache, v_cache, packed)

On a CUDA device the call also takes `launch=launch_sizes(plan)`: integers that the host would have
to wait for if it read them in the packed plan. They stay the same until another plan is made.

The operators are for inference: no result requires grad, whatever the inputs do. Compiled code
writes caches in place where each is a tensor of its own or a view taken inside the graph; two views
of one tensor that are both inputs of a graph are copied by the compiler.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from marco_fast import ops
from marco_fast.ops.attention.packed_plan import launch_sizes, packed_plan, restore_plan

__all__ = ["launch_sizes", "packed_plan"]

# Written out, not inferred by torch.library.custom_op, whose wrapper costs 9 us more per call.
SCHEMAS = {
    "topk_confidence": (
        "(Tensor logits, Tensor token_ids, *, SymInt top_k=5, float temperature=1.0, "
        "str denominator='top_k', str? backend=None) -> (Tensor confidence, Tensor token_logprobs, "
        "Tensor lse, Tensor topk_logprobs, Tensor topk_ids, Tensor status)"
    ),
    "sample_confidence": (
        "(Tensor logits, *, Tensor? temperature=None, Tensor? top_p=None, Tensor? min_p=None, "
        "Tensor? sample_top_k=None, Tensor seeds, Tensor positions, SymInt top_k=5, "
        "str score='raw', str denominator='top_k', Tensor(a!)? path_sums=None, "
        "Tensor(b!)? path_counts=None, Tensor? active=None, str? backend=None) -> "
        "(Tensor token_ids, Tensor confidence, Tensor token_logprobs, Tensor lse, "
        "Tensor topk_logprobs, Tensor topk_ids, Tensor status, Tensor entropy)"
    ),
    "lm_head_confidence": (
        "(Tensor hidden, Tensor weight, *, Tensor? bias=None, ScalarType? round_logits=None, "
        "Tensor? temperature=None, Tensor? top_p=None, Tensor? min_p=None, "
        "Tensor? sample_top_k=None, Tensor seeds, Tensor positions, SymInt top_k=5, "
        "str score='raw', str denominator='top_k', Tensor(a!)? path_sums=None, "
        "Tensor(b!)? path_counts=None, Tensor? active=None, str? backend=None) -> "
        "(Tensor token_ids, Tensor confidence, Tensor token_logprobs, Tensor lse, "
        "Tensor topk_logprobs, Tensor topk_ids, Tensor status, Tensor entropy)"
    ),
    "append_kv": (
        "(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slot_mapping, *, "
        "str? backend=None) -> ()"
    ),
    "tree_attention": (
        "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor plan, *, SymInt[] launch=[], "
        "float? scale=None, str? backend=None) -> (Tensor out, Tensor lse)"
    ),
}


DEFAULTS: dict[str, float] = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "sample_top_k": 0}


def sampling(
    operation: Callable[..., tuple[Tensor, ...]],
) -> Callable[..., tuple[Tensor, ...]]:
    """An operation that draws, where an option that is None has its default."""

    def run(
        *inputs: Tensor,
        path_sums: Tensor | None = None,
        path_counts: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, ...]:
        for name, default in DEFAULTS.items():
            if options.get(name) is None:
                options[name] = default
        return operation(*inputs, path_sums=path_sums, path_counts=path_counts, **options)

    return run


def tree_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: Tensor,
    *,
    launch: Sequence[int] = (),
    scale: float | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor] | Tensor:
    """ops.tree_attention with the plan as packed_plan and launch_sizes return it."""
    return ops.tree_attention(
        q,
        k_cache,
        v_cache,
        restore_plan(plan, launch),
        scale=scale,
        return_lse=True,
        backend=backend,
    )


def _scores(logits: Tensor, top_k: int) -> tuple[Tensor, ...]:
    rows = logits.shape[0]
    real = logits.new_empty(rows, dtype=torch.float32)
    ranked = logits.new_empty((rows, top_k), dtype=torch.float32)
    status = logits.new_empty(rows, dtype=torch.int32)
    ids = torch.empty_like(ranked, dtype=torch.int32)
    return real, torch.empty_like(real), torch.empty_like(real), ranked, ids, status


# Fakes say what comes out of valid arguments; the operator checks them when it runs.
def _fake_topk_confidence(
    logits: Tensor,
    token_ids: Tensor,
    *,
    top_k: int = 5,
    temperature: float = 1.0,
    denominator: str = "top_k",
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    return _scores(logits, top_k)


def _fake_sample_confidence(
    logits: Tensor, *, top_k: int = 5, **options: Any
) -> tuple[Tensor, ...]:
    rows = logits.shape[0]
    token_ids = logits.new_empty(rows, dtype=torch.int32)
    entropy = logits.new_empty(rows, dtype=torch.float32)
    return token_ids, *_scores(logits, top_k), entropy


def _fake_lm_head_confidence(
    hidden: Tensor, weight: Tensor, *, top_k: int = 5, **options: Any
) -> tuple[Tensor, ...]:
    return _fake_sample_confidence(hidden, top_k=top_k)


def _fake_append_kv(*args: Tensor, backend: str | None = None) -> None:
    pass


def _fake_tree_attention(q: Tensor, *args: object, **options: object) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


def _register() -> torch.library.Library:
    library = torch.library.Library("marco_fast", "DEF")
    operators: list[tuple[str, Callable[..., Any], Callable[..., Any]]] = [
        ("topk_confidence", ops.topk_confidence, _fake_topk_confidence),
        ("sample_confidence", sampling(ops.sample_confidence), _fake_sample_confidence),
        ("lm_head_confidence", sampling(ops.lm_head_confidence), _fake_lm_head_confidence),
        ("append_kv", ops.append_kv, _fake_append_kv),
        ("tree_attention", tree_attention, _fake_tree_attention),
    ]
    for name, run, fake in operators:
        library.define(name + SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, run, "CompositeExplicitAutograd")
        # Without this autograd would hang a node on the results that warns, and gives no gradient.
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(f"marco_fast::{name}", fake, lib=library)
    return library


_library = _register()  # the operators live as long as this object
