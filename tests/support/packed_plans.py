"""Packed plans of small forests, and the arrays in them."""

import numpy as np
import torch

from marco_fast.ops.reference.plan import PLAN_ARRAYS
from marco_fast.ops.reference.work_items import HEADER_WORDS, SECTIONS, section_words
from tests.support.trees import Forest, random_forest

__all__ = ["arrays_of", "begin_of", "forest_of"]


def forest_of(seed: int, **kwargs) -> Forest:
    shape = {"nodes": 8, "queries": 6, "heads": 4, "kv_heads": 2, "head_dim": 16, "page_size": 4}
    return random_forest(seed, max_len=11, **(shape | kwargs))


def begin_of(packed: torch.Tensor, section: str) -> int:
    """The word where a section begins."""
    words = section_words(packed[16:22].tolist())[: SECTIONS.index(section)]
    return HEADER_WORDS + sum(each + -each % 4 for each in words)


def arrays_of(packed: torch.Tensor) -> list[np.ndarray]:
    """The plan's arrays in a packed plan, whatever they hold."""
    words = section_words(packed[10:16].tolist())
    begins = [begin_of(packed, name) for name in PLAN_ARRAYS]
    views = zip(begins, words, strict=False)
    return [packed[begin : begin + held].numpy() for begin, held in views]
