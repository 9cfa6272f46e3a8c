"""marco_fast: tree search over a language model's reasoning, with kernels that make it fast.

Everything public is here; each name loads its module at first use, so that the import stays light.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "marco_fast.engine.engine": ["Engine"],
    "marco_fast.engine.kv_cache": ["PagedKVCache"],
    "marco_fast.errors": ["BackendError", "KVCacheFull", "MarcoFastError", "ModelError"],
    "marco_fast.ops": [
        "LMHeadRecords",
        "SampledTokens",
        "TopKConfidence",
        "TreeAttentionPlan",
        "append_kv",
        "lm_head_confidence",
        "lm_head_records",
        "merge_records",
        "plan_tree_attention",
        "sample_confidence",
        "topk_confidence",
        "tree_attention",
    ],
    "marco_fast.result": ["Progress", "SearchResult", "SearchStats"],
    "marco_fast.search.mcts": ["Search", "SearchConfig", "Ticket"],
    "marco_fast.search.tree": ["SearchTree"],
    "marco_fast.solve": ["solve"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [*sorted(_HOME), "reference"]


class _Package(ModuleType):
    """A module that is named like its function never takes the function's place here."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


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
