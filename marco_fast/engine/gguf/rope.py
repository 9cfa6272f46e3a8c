"""The rotation of positions that a GGUF file describes, as transformers' `rope_parameters`."""

import math
from statistics import median
from typing import Any

import torch

from marco_fast.engine.gguf.file import GgufFile

__all__ = ["FREQUENCIES", "rope_parameters"]

FREQUENCIES = "rope_freqs.weight"  # by what each frequency is divided: Llama 3.1 and later
LONG = ("rope_factors_long.weight", "rope_factors_short.weight")
LOW, HIGH = 1.0, 4.0  # Llama 3's low_freq_factor and high_freq_factor; files do not have them
CLOSE = 1e-5  # of a factor: files have them in float32


def rope_parameters(file: GgufFile, arch: str, head_dim: int, context: int) -> dict[str, Any]:
    """The base, and how the frequencies are scaled.

    Raises:
        ModelError: with the cause, where transformers' model would turn positions otherwise.
    """
    base = {"rope_theta": float(file.number(f"{arch}.rope.freq_base", 10000.0))}
    if not base["rope_theta"] > 1:
        raise file.refusal(f"{arch}.rope.freq_base above 1", f"{base['rope_theta']}")
    turned = file.count(f"{arch}.rope.dimension_count", head_dim)
    if turned != head_dim:
        raise file.refusal(f"RoPE that turns whole heads of {head_dim}", f"{turned} of a head")
    if long := [each for each in LONG if each in file.tensors]:
        raise file.refusal("RoPE of one scale for all lengths", long[0])
    scaled = _scaling(file, arch, context)
    if FREQUENCIES not in file.tensors:
        return base | scaled
    if scaled["rope_type"] != "default":
        raise file.refusal("RoPE that is scaled in one way", f"{scaled['rope_type']} and factors")
    return base | _by_factors(file, base["rope_theta"], head_dim)


def _scaling(file: GgufFile, arch: str, context: int) -> dict[str, Any]:
    kind = file.text(f"{arch}.rope.scaling.type") or "none"
    prefix = f"{arch}.rope.scaling."
    factor = file.number(f"{prefix}factor", file.number(f"{arch}.rope.scale_linear", 1.0))
    if factor <= 0:
        raise file.refusal(f"a positive {prefix}factor", f"{factor}")
    if kind not in ("none", "linear", "yarn"):
        raise file.refusal("RoPE that is not scaled, or by linear or yarn", repr(kind))
    if kind == "none" and f"{prefix}type" in file.fields:
        factor = 1.0
    if kind == "yarn":
        return _yarn(file, prefix, float(factor), context)
    if factor == 1:
        return {"rope_type": "default"}
    return {"rope_type": "linear", "factor": float(factor)}


def _yarn(file: GgufFile, prefix: str, factor: float, context: int) -> dict[str, Any]:
    for name, usual in (("yarn_ext_factor", 1), ("yarn_log_multiplier", 0)):
        got = file.number(f"{prefix}{name}", usual)
        if got != usual:
            raise file.refusal(f"{prefix}{name} of {usual}", f"{got}")
    attention = file.number(f"{prefix}yarn_attn_factor", file.number(f"{prefix}attn_factor", 1.0))
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": file.count(f"{prefix}original_context_length", context),
        "beta_fast": float(file.number(f"{prefix}yarn_beta_fast", 32.0)),
        "beta_slow": float(file.number(f"{prefix}yarn_beta_slow", 1.0)),
        "attention_factor": float(attention) * (0.1 * math.log(max(factor, 1.0)) + 1.0),
    }


def _by_factors(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """Scaling from the factors alone: the file does not have the numbers that they are made of."""
    tensor = file.tensors[FREQUENCIES]
    if tensor.kind != "F32" or tensor.shape != (head_dim // 2,):
        got = f"{tensor.kind} of the shape {tensor.shape}"
        raise file.refusal(f"{FREQUENCIES} in F32 of the shape ({head_dim // 2},)", got)
    read = tensor.read()
    assert isinstance(read, torch.Tensor)
    factors = read.double().tolist()
    lengths = [2 * math.pi * theta ** (2 * each / head_dim) for each in range(head_dim // 2)]
    largest = max(factors)
    if not all(each >= 1 - CLOSE for each in factors) or not largest < math.inf:
        raise file.refusal(f"{FREQUENCIES} of 1 and more", f"{min(factors)} to {largest}")
    if largest - 1 <= CLOSE:
        return {"rope_type": "default"}
    if min(factors) >= largest * (1 - CLOSE):
        return {"rope_type": "linear", "factor": largest}
    original = _original_context(factors, lengths)
    if not _agree(factors, _llama3(lengths, largest, original)):
        raise file.refusal(f"{FREQUENCIES} as Llama 3 scales RoPE", "others")
    return {
        "rope_type": "llama3",
        "factor": largest,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": original,
    }


def _original_context(factors: list[float], lengths: list[float]) -> int:
    """The context before scaling, for which the factors would be as they are; at least 1."""
    largest = max(factors)
    between = [
        length * (LOW + (HIGH - LOW) * (1 / factor - 1 / largest) / (1 - 1 / largest))
        for factor, length in zip(factors, lengths, strict=True)
        if 1 + CLOSE < factor < largest * (1 - CLOSE)
    ]
    if between:
        return max(1, round(median(between)))
    # No wave is between the two: any context that parts them says the same of this model.
    kept = max((w for f, w in zip(factors, lengths, strict=True) if f <= 1 + CLOSE), default=1.0)
    scaled = min(w for f, w in zip(factors, lengths, strict=True) if f > 1 + CLOSE)
    return max(1, round(math.sqrt(HIGH * kept * LOW * scaled)))


def _llama3(lengths: list[float], factor: float, original: int) -> list[float]:
    """By what Llama 3 divides the frequency of waves of these lengths."""
    factors = []
    for length in lengths:
        smooth = min(1.0, max(0.0, (original / length - LOW) / (HIGH - LOW)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def _agree(some: list[float], others: list[float]) -> bool:
    return all(abs(one / other - 1) <= CLOSE for one, other in zip(some, others, strict=True))
