"""How long a path may be."""

import warnings
from typing import Any, NamedTuple

from marco_fast.errors import ModelError

__all__ = ["REACH", "Limit", "context_of", "limit_of"]


class Window(NamedTuple):
    """A field of a configuration that bounds what a layer sees.

    Attributes:
        kind: what the names of such layers have in them. text: how it is called.
    """

    kind: str
    text: str


POSITIONS = "the positions"
REACH = "the reach of its layers"
SCALED_ROPE = "the length up to which its RoPE is not scaled"
WINDOWS = {
    "sliding_window": Window("sliding", "its sliding window"),
    "attention_chunk_size": Window("chunked", "its attention chunk"),
}


class Limit(NamedTuple):
    """The longest path, and what sets it."""

    tokens: int
    cause: str


def limit_of(config: Any) -> Limit:
    """The most tokens that a path may have for every token to be computed as the model would.

    Within a window all layers see the whole path, so the KV cache needs to forget nothing; and
    keys that are stored once stay right as long as the rotation of a position does not depend on
    the length of the path.

    """
    fields = ("max_position_embeddings", *WINDOWS)
    lengths = {name: getattr(config, name, None) for name in fields}
    if not getattr(config, "use_sliding_window", True):
        lengths["sliding_window"] = None
    kinds = getattr(config, "layer_types", None)
    if kinds:  # a window may stand in the configuration and no layer use it
        used = [name for name in WINDOWS if any(WINDOWS[name].kind in kind for kind in kinds)]
        lengths = {name: lengths[name] for name in ("max_position_embeddings", *used)}
    limits = [
        Limit(size, WINDOWS[name].text if name in WINDOWS else POSITIONS)
        for name, size in lengths.items()
        if isinstance(size, int) and size > 0
    ]
    limits += [Limit(size, SCALED_ROPE) for size in _rope_lengths(config)]
    return min(limits)


def _rope_lengths(config: Any) -> list[int]:
    """Up to where RoPE turns a position by the same angle in a path of any length."""
    parameters = getattr(config, "rope_parameters", None) or {}
    # one RoPE, or one for each type of layer
    ropes = [parameters, *(each for each in parameters.values() if isinstance(each, dict))]
    return [
        int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
        for rope in ropes
        if rope.get("rope_type") in ("dynamic", "longrope")
    ]


def context_of(limit: Limit, name: str, context: int | None, kv_tokens: int | None) -> int:
    """The longest path in tokens; a warning says when a window alone makes it shorter.

    Args:
        limit: the model's. name: the model's, for messages.
        context: what the caller asked for. kv_tokens: what the cache is to hold.

    Raises:
        ModelError: the model takes no path worth the name.
        ValueError: the context is not in the range of the model.
    """
    longest, cause = limit
    if longest < 1:
        raise ModelError(
            f"expected a path of 1 token at least, got {longest} ({cause} of {name!r})"
        )
    if context is not None:
        if not 2 <= context <= longest:
            raise ValueError(
                f"expected a context of 2 to {longest} tokens ({cause} of {name!r}), got {context}"
            )
        return context
    if kv_tokens is not None and kv_tokens <= longest:
        return kv_tokens
    if cause != POSITIONS:
        warnings.warn(
            f"{name!r} runs within {cause}: a path may have {longest} tokens", stacklevel=4
        )
    return longest
