"""The operations: each checks its arguments, allocates its outputs and runs one backend.

Semantics and formulas are those of `marco_fast.ops.reference`, the same functions in float64. Of
all of them:

NumPy's integers and floats, and arrays and tensors without a dimension, count as numbers. NumPy
arrays, and what speaks DLPack, count as tensors, without a copy: what is written in place is
written through. Results are tensors of PyTorch.

No result is differentiable: what requires grad is taken without its graph. What is written in
place has a new version afterwards, so that a backward pass that needs the old values fails.

Neither the modes of a thread (default device, autocast, FakeTensorMode, grad mode, transforms of
torch.func) nor the default dtype and the precision of products change a result. A tensor without
memory of its own (fake, meta, sparse, wrapped by a transform) is a ValueError.
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
from marco_fast.ops.quantize import quantize
from marco_fast.ops.quantized import PackedWeight, QuantizedWeight

__all__ = [
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
]
