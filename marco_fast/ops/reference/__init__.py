"""The operations in PyTorch: the specification.

Given float64 inputs (or `dtype=torch.float64`) these functions are the definition that every kernel
is compared with; in float32 the same code is the backend "torch".
"""

from marco_fast.ops.reference.attention import append_kv, tree_attention
from marco_fast.ops.reference.confidence import (
    SampledTokens,
    TopKConfidence,
    lm_head_confidence,
    lm_head_records,
    sample_confidence,
    topk_confidence,
)

__all__ = [
    "SampledTokens",
    "TopKConfidence",
    "append_kv",
    "lm_head_confidence",
    "lm_head_records",
    "sample_confidence",
    "topk_confidence",
    "tree_attention",
]
