"""The operations: each checks its arguments, allocates its outputs and runs one backend.

Semantics and formulas are those of `marco_fast.ops.reference`, the same functions in float64.
"""

from marco_fast.ops.attention.attend import append_kv, tree_attention
from marco_fast.ops.attention.plan import TreeAttentionPlan, plan_tree_attention
from marco_fast.ops.confidence.lm_head import lm_head_confidence
from marco_fast.ops.confidence.sample import (
    SampledTokens,
    TopKConfidence,
    sample_confidence,
    topk_confidence,
)
from marco_fast.ops.confidence.shards import LMHeadRecords, lm_head_records, merge_records

__all__ = [
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
]
