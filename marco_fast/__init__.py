"""marco_fast: tree search over a language model's reasoning, with kernels that make it fast.

Everything public is here; each name loads its module at first use, so that the import stays light.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "marco_fast.comparison.compare": ["Comparison", "compare"],
    "marco_fast.comparison.statistics": ["Share"],
    "marco_fast.data.filters": ["Limits"],
    "marco_fast.data.generate": ["DataProgress", "DataSummary", "generate_data"],
    "marco_fast.data.questions_file": ["read_questions"],
    "marco_fast.engine.engine": ["Engine"],
    "marco_fast.engine.kv_cache": ["PagedKVCache"],
    "marco_fast.errors": ["BackendError", "KVCacheFull", "MarcoFastError", "ModelError"],
    "marco_fast.ops": [
        "LMHeadRecords",
        "PackedWeight",
        "QuantizedWeight",
        "SampledTokens",
        "TopKConfidence",
        "TreeAttentionPlan",
        "append_kv",
        "lm_head_confidence",
        "lm_head_records",
        "merge_records",
        "plan_tree_attention",
        "quantize",
        "sample_confidence",
        "topk_confidence",
        "tree_attention",
    ],
    "marco_fast.forest.result": ["Progress", "SearchResult", "SearchStats"],
    "marco_fast.search.answer": ["AnswerGroup"],
    "marco_fast.search.config": ["SearchConfig"],
    "marco_fast.search.final": ["final_of"],
    "marco_fast.search.mcts": ["Search", "Ticket"],
    "marco_fast.search.replies": ["Reply", "ReplyFormat"],
    "marco_fast.questions.questions": ["Question", "is_correct", "sample_questions"],
    "marco_fast.search.tree": ["SearchTree"],
    "marco_fast.forest.solve": ["solve"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [*sorted(_HOME), "reference"]


def __reduce_ex__(protocol: int) -> Any:  # noqa: N807
    """Pickles the package by its name: a function that holds it can go to another process."""
    return import_module, (__name__,)


def __getattr__(name: str) -> Any:
    if name == "reference":
        return import_module("marco_fast.ops.reference")
    if name not in _HOME:
        raise AttributeError(f"module 'marco_fast' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
