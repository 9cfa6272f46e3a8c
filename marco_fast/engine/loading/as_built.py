"""Whether a model is still what its class builds: then what is known of the class holds for it."""

import copy
from typing import Any

import torch

from marco_fast.engine.quantized import QuantizedEmbedding, QuantizedLinear

__all__ = ["is_as_built"]


def is_as_built(model: Any) -> bool:
    """Whether a model differs in nothing but its weights' values from a new one of its class.

    Modules that were wrapped, replaced, left out or shared, hooks, functions of an object's own,
    other numbers, and parameters of another shape, dtype or layout are such differences.
    """
    with torch.device("meta"):
        new = type(model)(copy.deepcopy(model.config))
    ours, theirs = (dict(each.named_modules(remove_duplicate=False)) for each in (model, new))
    if [*ours] != [*theirs] or len({*map(id, ours.values())}) != len({*map(id, theirs.values())}):
        return False
    plain = all(_is_plain(each, model) for each in model.parameters())
    return plain and all(map(_is_alike, ours.values(), theirs.values()))


def _is_plain(parameter: torch.nn.Parameter, model: Any) -> bool:
    """Whether it is memory as any other of the model's: subclasses hold quantised numbers."""
    place = (parameter.dtype, parameter.device) == (model.dtype, model.device)
    return type(parameter) is torch.nn.Parameter and place and parameter.is_contiguous()


def _is_alike(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two modules compute the same from the same weights, their children aside."""
    if one._forward_hooks or one._forward_pre_hooks:
        return False
    if isinstance(one, QuantizedLinear | QuantizedEmbedding):  # of the same sizes: values differ
        return _sizes(one) == _sizes(other)
    return type(one) is type(other) and _settings(one) == _settings(other)


def _sizes(module: torch.nn.Module) -> list[Any]:
    """What an embedding or a linear layer, quantised or not, is beside its values."""
    names = ("num_embeddings", "embedding_dim", "in_features", "out_features")
    bias = getattr(module, "bias", None)
    return [getattr(module, name, None) for name in names] + [None if bias is None else bias.shape]


def _settings(module: torch.nn.Module) -> dict[str, Any]:
    """The numbers and functions that an object has of its own, and its parameters' shapes."""
    own = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and (isinstance(value, int | float) or callable(value))
    }
    shapes = {name: None if p is None else p.shape for name, p in module._parameters.items()}
    return {**own, **shapes, "training": None}
