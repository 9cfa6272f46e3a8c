"""Arguments of every torch.library operator, for the tests of their eager and compiled forms."""

import torch

from marco_fast.torch_library import packed_plan
from tests.support.trees import Forest, random_forest

__all__ = [
    "APPEND_CASES", "ATTENTION_CASES", "LM_HEAD_CASES", "NAMES", "OPS", "SAMPLE_CASES",
    "TOPK_CASES", "appended", "attended", "draws", "forest_of", "logits_of", "options",
    "paths", "same",
]  # fmt: skip

OPS = torch.ops.marco_fast
NAMES = [
    "topk_confidence",
    "sample_confidence",
    "lm_head_confidence",
    "append_kv",
    "tree_attention",
]


def logits_of(rows: int, vocabulary: int = 40, dtype=torch.float32, padded=0) -> torch.Tensor:
    torch.manual_seed(rows)
    return torch.randn(rows, vocabulary + padded).to(dtype)[:, :vocabulary]


def draws(rows: int) -> dict[str, torch.Tensor]:
    return {"seeds": torch.arange(rows) * 7 + 3, "positions": torch.arange(rows) + 11}


def options(rows: int) -> dict[str, torch.Tensor]:
    return {
        "temperature": torch.linspace(0.5, 1.5, rows),
        "top_p": torch.linspace(0.6, 1.0, rows),
        "min_p": torch.linspace(0.0, 0.1, rows),
        "sample_top_k": torch.arange(rows, dtype=torch.int32),
    }


def paths(rows: int) -> dict[str, torch.Tensor]:
    return {
        "path_sums": torch.arange(rows),
        "path_counts": torch.arange(rows, dtype=torch.int32),
        "active": torch.arange(rows) % 2 == 0,
    }


def headed(rows: int, dtype=torch.float32, padded=0) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden [rows, 6] and weight [40, 6]."""
    torch.manual_seed(rows)
    hidden, weight = torch.randn(rows, 6 + padded), torch.randn(40, 6 + padded)
    return hidden.to(dtype)[:, :6], weight.to(dtype)[:, :6]


def appended(tokens: int, dtype=torch.float32, pool=False) -> tuple[torch.Tensor, ...]:
    """The arguments of append_kv: 3 KV heads of 16, 5 pages of 8; with `pool`, of one tensor."""
    torch.manual_seed(tokens)
    k, v = torch.randn(2, tokens, 3, 16 + 4).to(dtype)[..., :16]
    caches = torch.zeros(2, 5, 3, 8, 16, dtype=dtype)
    k_cache, v_cache = caches if pool else (caches[0].clone(), caches[1].clone())
    slots = torch.randperm(40)[:tokens]
    slots[1:2] = -1
    return k, v, k_cache, v_cache, slots


def forest_of(seed: int, queries: int = 5, **shape) -> Forest:
    shape = {"nodes": 7, "heads": 6, "kv_heads": 2, "head_dim": 16, "page_size": 8} | shape
    shape = {"dtype": torch.float32} | shape
    return random_forest(seed, queries=queries, **shape)


def attended(forest: Forest, **plan) -> tuple:
    """The arguments of tree_attention; what no segment owns is 0, since NaN equals nothing."""
    caches = [cache.nan_to_num() for cache in forest.caches()]
    return forest.q, *caches, packed_plan(forest.plan(**plan))


def same(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> None:
    """Equal bits, dtypes, shapes and strides, field by field."""
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        assert torch.equal(one, other)


TOPK_CASES = {
    "float32": ((logits_of(3), torch.tensor([1, 2, 3])), {}),
    "bfloat16": ((logits_of(3, dtype=torch.bfloat16), torch.tensor([1, 2, 3])), {"top_k": 1}),
    "int32 ids": (
        (logits_of(2, dtype=torch.float16), torch.tensor([0, 39], dtype=torch.int32)),
        {"top_k": 40, "denominator": "union"},
    ),
    "strided": (
        (logits_of(4, padded=9), torch.arange(8)[::2]),
        {"temperature": 0.7, "backend": "cpu"},
    ),
    "no rows": ((logits_of(0), torch.empty(0, dtype=torch.int64)), {}),
    "wants grad": ((logits_of(2).requires_grad_(), torch.tensor([5, 6])), {}),
}
SAMPLE_CASES = {
    "draws alone": ((logits_of(3),), draws(3)),
    "every option": ((logits_of(4),), {**draws(4), **options(4), **paths(4)}),
    "tempered": (
        (logits_of(3, dtype=torch.bfloat16, padded=3),),
        {**draws(3), **options(3), "score": "tempered", "denominator": "union", "top_k": 2},
    ),
    "one path": ((logits_of(2, dtype=torch.float16),), {**draws(2), "path_sums": torch.arange(2)}),
    "no rows": ((logits_of(0),), {**draws(0), **options(0), **paths(0)}),
    "wants grad": ((logits_of(2).requires_grad_(),), {**draws(2), **paths(2)}),
}
LM_HEAD_CASES = {
    "draws alone": (headed(3), draws(3)),
    "every option": (
        headed(4, torch.bfloat16, padded=3),
        {
            **draws(4),
            **options(4),
            **paths(4),
            "bias": torch.linspace(-1, 1, 40),
            "round_logits": torch.bfloat16,
            "score": "tempered",
        },
    ),
    "no rows": (headed(0), {**draws(0), **options(0), **paths(0)}),
    "wants grad": ((headed(2)[0].requires_grad_(), headed(2)[1]), {**draws(2), **paths(2)}),
}
APPEND_CASES = {
    "float32": appended(4),
    "bfloat16": appended(3, torch.bfloat16),
    "one pool": appended(5, torch.float16, pool=True),
    "no tokens": appended(0),
    "wants grad": [x.requires_grad_() if i < 2 else x for i, x in enumerate(appended(3))],
}
_q, *_others = attended(forest_of(5))
ATTENTION_CASES = {
    "float32": (attended(forest_of(1)), {}),
    "bfloat16": (attended(forest_of(2, dtype=torch.bfloat16)), {"scale": 0.3}),
    "parts of leaves": (attended(forest_of(3, dtype=torch.float16, partial=True)), {}),
    "heads first": ((_q.transpose(0, 1).contiguous().transpose(0, 1), *_others), {}),
    "no queries": (attended(forest_of(4, queries=0)), {"scale": -1.0, "backend": "cpu"}),
}
