"""A GGUF file's fields and tensors, once its header was read."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from marco_fast.engine.gguf.blocks import BLOCKS, decode
from marco_fast.engine.quantized import QuantizedWeight
from marco_fast.errors import ModelError

__all__ = ["GgufFile", "GgufTensor", "told"]

PIECE = 1 << 22  # numbers that are decoded at a time: those of a large vocabulary are a gigabyte
WHOLE_ROWS = 32  # of which a piece has a multiple: outputs that are packed together


class GgufTensor(NamedTuple):
    """Where a tensor is, and how it is stored.

    Attributes:
        shape: in PyTorch's order, outputs first. kind: the name of its type, a key of BLOCKS.
        path: the file. begin: of its bytes in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    path: Path
    begin: int

    @property
    def quantized(self) -> bool:
        """Whether its numbers are codes and scales."""
        return BLOCKS[self.kind].unpack is not None

    @property
    def size(self) -> int:
        """Bytes."""
        block = BLOCKS[self.kind]
        return prod(self.shape) // block.inputs * block.size

    def read(self) -> torch.Tensor | QuantizedWeight:
        """What it holds, from the file: plain numbers of their own dtype, or codes and scales."""
        return self._rows(0, self.shape[0])

    def pieces(self) -> Iterator[torch.Tensor | QuantizedWeight]:
        """As `read`, some rows at a time."""
        outputs = self.shape[0]
        count = PIECE // prod(self.shape[1:]) // WHOLE_ROWS * WHOLE_ROWS or WHOLE_ROWS
        for first in range(0, outputs, count):
            yield self._rows(first, min(count, outputs - first))

    def _rows(self, first: int, count: int) -> torch.Tensor | QuantizedWeight:
        row = self.size // self.shape[0]
        raw = np.fromfile(self.path, np.uint8, count * row, offset=self.begin + first * row)
        if len(raw) < count * row:
            raise ModelError(f"expected {str(self.path)!r} to stay as it was, got a shorter file")
        return decode(self.kind, torch.from_numpy(raw), (count, *self.shape[1:]))


class GgufFile(NamedTuple):
    """The fields and tensors of a file, or of all parts of a split one, by name."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]

    def refusal(self, wanted: str, got: str) -> ModelError:
        """The error of one line that says what this file should have."""
        return ModelError(f"expected {wanted} in {str(self.path)!r}, got {got}")

    def number(self, name: str, default: float | None = None) -> float:
        """A field that is one finite number.

        Raises:
            ModelError: it is something else, or it is not there and there is no default.
        """
        value = self.fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0:
            raise self.refusal(f"a number as {name}", told(value))
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """A field that is one positive whole number, or an array of equal ones."""
        value = self.fields.get(name, default)
        if isinstance(value, list) and value and len({*map(repr, value)}) == 1:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refusal(f"one positive whole number as {name}", told(value))
        return value

    def text(self, name: str) -> str | None:
        """A field that is a text, or None where it is not there."""
        value = self.fields.get(name)
        if value is not None and not isinstance(value, str):
            raise self.refusal(f"a text as {name}", told(value))
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A field that is true or false."""
        value = self.fields.get(name, default)
        if not isinstance(value, bool):
            raise self.refusal(f"true or false as {name}", told(value))
        return value

    def texts(self, name: str) -> list[str]:
        """A field that is an array of texts; empty where it is not there."""
        return self._array(name, str)

    def numbers(self, name: str) -> list[float]:
        """A field that is an array of numbers; empty where it is not there."""
        return self._array(name, int | float)

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuses a file that does not have a tensor of that name and shape."""
        found = self.tensors.get(name)
        if found is None:
            raise self.refusal("all weights of the model", f"none for {name!r}")
        if found.shape != shape:
            raise self.refusal(f"{name!r} of the shape {shape}", f"{found.shape}")

    def _array(self, name: str, kind: Any) -> list[Any]:
        value = self.fields.get(name, [])
        if not isinstance(value, list) or (value and not isinstance(value[0], kind)):
            raise self.refusal(f"an array as {name}", told(value))
        return value


def told(value: Any) -> str:
    """A value as a message shows it: a text may be megabytes long."""
    if value is None:
        return "none"
    text = repr(value[:4] if isinstance(value, list) else value)
    return text if len(text) <= 80 else f"{text[:80]}..."
