"""Which architectures can be run as they are, by their configuration alone."""

from typing import Any

from marco_fast.errors import ModelError

__all__ = ["check_architecture"]


def check_architecture(config: Any) -> None:
    """Refuse what the engine would run wrong, before any weight is read.

    Raises:
        ModelError: the configuration is of a model that cannot be run faithfully.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError("expected weights in float32, bfloat16 or float16, got quantised weights")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"expected a decoder-only model, got {config.model_type!r}")
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    if size % 16 or not 16 <= size <= 256:
        raise ModelError(f"expected a head size of 16 to 256 in steps of 16, got {size}")
