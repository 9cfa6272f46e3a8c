"""The checked options of the confidence operations: what every backend takes beside its inputs."""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch

from marco_fast.ops.dtypes import FLOATS
from marco_fast.ops.numbers import described, real, whole
from marco_fast.ops.tensors import tensor_of, written_tensor

__all__ = [
    "LARGEST",
    "SMALLEST",
    "Head",
    "Sampling",
    "Scoring",
    "check_scoring",
    "float_tensor",
    "row_tensor",
    "sampling_arguments",
]

SMALLEST = torch.finfo(torch.float32).tiny
LARGEST = torch.finfo(torch.float32).max
_INT32_MAX = 2**31 - 1
_FLOAT32, _INT32 = torch.float32, torch.int32


class Scoring(NamedTuple):
    """How given tokens are scored."""

    temperature: float
    include_token: bool  # the token is in the denominator


class Sampling(NamedTuple):
    """How each row is drawn and counted, checked: what every backend takes.

    An option is a tensor, or a number for all rows.
    """

    temperature: Any  # [B] float32, or a float
    top_p: Any  # [B] float32, or a float
    min_p: Any  # [B] float32, or a float
    sample_top_k: Any  # [B] int32, or an int
    seeds: torch.Tensor  # [B] int64
    positions: torch.Tensor  # [B] int64
    path_sums: torch.Tensor | None  # [B] int64, units of 2^-40, added to
    path_counts: torch.Tensor | None  # [B] int32, added to
    active: torch.Tensor | None  # [B] bool: which rows' paths are added to
    tempered: bool  # scores are those of softmax(logits / temperature), not of softmax(logits)
    include_token: bool  # the drawn token is in the denominator

    def as_rows(self) -> "Sampling":
        """The same with every option as a tensor."""
        seeds = self.seeds
        return Sampling(
            _filled(self.temperature, seeds, False),
            _filled(self.top_p, seeds, False),
            _filled(self.min_p, seeds, False),
            _filled(self.sample_top_k, seeds, True),
            seeds,
            self.positions,
            self.path_sums,
            self.path_counts,
            self.active,
            self.tempered,
            self.include_token,
        )

    def of_rows(self, part: slice) -> "Sampling":
        """The same of some of the rows."""
        fields: list[Any] = [
            each[part] if isinstance(each, torch.Tensor) else each for each in self
        ]
        return Sampling(*fields)


class Head(NamedTuple):
    """The logits that are scored, as the product that makes them: hidden @ weight.T + bias."""

    hidden: torch.Tensor  # [B, H]
    weight: Any  # a tensor or PackedWeight [V, H], or a shard of it
    bias: torch.Tensor | None  # [V] float32
    round_logits: torch.dtype  # float32: they are not rounded


def check_scoring(vocab_size: int, top_k: int, denominator: str) -> int:
    """top_k as an int; ValueError where one of the three is out of range."""
    if vocab_size > _INT32_MAX:
        raise ValueError(f"expected V < 2^31, got {vocab_size}")
    number = whole(top_k)
    if number is None or not 1 <= number <= vocab_size:
        raise ValueError(f"expected 1 <= top_k <= {vocab_size} (V), got {described(top_k)}")
    if denominator not in ("top_k", "union"):
        raise ValueError(f"expected denominator to be 'top_k' or 'union', got {denominator!r}")
    return number


def float_tensor(name: str, value: Any) -> torch.Tensor:
    """`tensor_of` for float32, bfloat16 or float16; ValueError for others."""
    wanted = "a tensor of float32, bfloat16 or float16"
    tensor = tensor_of(name, value, wanted)
    if tensor.dtype not in FLOATS:
        raise ValueError(f"expected {name} as {wanted}, got {tensor.dtype}")
    return tensor


def row_tensor(
    name: str,
    value: Any,
    logits: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
    written: bool = False,
) -> torch.Tensor:
    """The value as a [B] tensor of one of `dtypes` on the logits' device, else a ValueError."""
    if isinstance(value, torch.Tensor):
        _check_device(name, value, logits)
    tensor = written_tensor(name, value) if written else tensor_of(name, value)
    if tensor is not value:
        _check_device(name, tensor, logits)
    if tensor.dtype not in dtypes:
        raise ValueError(f"expected {name} of {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
    if tensor.dim() != 1 or len(tensor) != len(logits):
        raise ValueError(f"expected {name} [{len(logits)}], got shape {tuple(tensor.shape)}")
    return tensor


def _check_device(name: str, tensor: torch.Tensor, logits: torch.Tensor) -> None:
    if not (tensor.is_cpu and logits.is_cpu) and tensor.device != logits.device:
        raise ValueError(f"expected {name} on {logits.device}, got {tensor.device}")


def _updated(
    name: str, value: Any, logits: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor | None:
    if value is None:
        return None
    tensor = row_tensor(name, value, logits, (dtype,), written=True)
    if not tensor.is_contiguous():
        raise ValueError(f"expected {name} contiguous, got stride {tensor.stride()}")
    return tensor


def _row_option(
    name: str,
    value: Any,
    logits: torch.Tensor,
    dtype: torch.dtype,
    low: float,
    high: float,
) -> Any:
    """The option as a contiguous [B] tensor of `dtype` or a number, its values in [low, high].

    The values of a tensor on another device than the CPU are not looked at: that would wait for it.
    """
    number = None if isinstance(value, torch.Tensor) and not value.is_cpu else real(value)
    if number is not None:
        if dtype == _INT32 and not isinstance(number, int):
            raise ValueError(f"expected {name} as an integer, got {described(value)}")
        if not low <= number <= high:
            raise ValueError(f"expected {name} in [{low}, {high}], got {number}")
        return int(number) if dtype == _INT32 else float(number)
    if not hasattr(value, "__dlpack__"):
        raise ValueError(f"expected {name} as a number or a tensor, got {type(value).__name__}")
    allowed: tuple[torch.dtype, ...] = (torch.float64, *FLOATS)
    if dtype == _INT32:
        allowed = (_INT32, torch.int64)
    tensor = tensor_of(name, value)
    if tensor.dim() == 0:  # a number on another device
        tensor = tensor.expand(len(logits))
    tensor = row_tensor(name, tensor, logits, allowed)
    if tensor.is_cpu and tensor.shape[0] > 0:
        values = tensor.float().numpy() if dtype == _FLOAT32 else tensor.numpy()
        least, most = np.minimum.reduce(values), np.maximum.reduce(values)
        if not (least >= low and most <= high):
            raise ValueError(f"expected {name} in [{low}, {high}], got {least} to {most}")
    return tensor.to(dtype).contiguous()


def _filled(value: Any, seeds: torch.Tensor, whole: bool) -> torch.Tensor:
    """An option as a tensor beside `seeds` [B]."""
    if isinstance(value, torch.Tensor):
        return value
    if seeds.is_cpu:
        return torch.from_numpy(_constant(seeds.shape[0], value, whole))
    return torch.full(seeds.shape, value, dtype=_INT32 if whole else _FLOAT32, device=seeds.device)


@functools.lru_cache(maxsize=64)
def _constant(rows: int, value: float, whole: bool) -> np.ndarray:
    """A number as an option of every row, which nobody writes into."""
    return np.full(rows, value, np.int32 if whole else np.float32)


def sampling_arguments(
    rows: torch.Tensor,
    temperature: float | torch.Tensor,
    top_p: float | torch.Tensor,
    min_p: float | torch.Tensor,
    sample_top_k: int | torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    score: str,
    denominator: str,
    path_sums: torch.Tensor | None,
    path_counts: torch.Tensor | None,
    active: torch.Tensor | None,
) -> Sampling:
    """The arguments of a draw, checked, the tensors contiguous [B] beside `rows` [B, ...].

    Raises:
        ValueError: as sample_confidence documents.
    """
    if score not in ("raw", "tempered"):
        raise ValueError(f"expected score to be 'raw' or 'tempered', got {score!r}")
    lowest = SMALLEST if score == "tempered" else 0.0
    options = (
        _row_option("temperature", temperature, rows, torch.float32, lowest, LARGEST),
        _row_option("top_p", top_p, rows, torch.float32, SMALLEST, 1.0),
        _row_option("min_p", min_p, rows, torch.float32, 0.0, 1.0),
        _row_option("sample_top_k", sample_top_k, rows, torch.int32, 0, _INT32_MAX),
    )
    keys = (
        row_tensor("seeds", seeds, rows, (torch.int64,)).contiguous(),
        row_tensor("positions", positions, rows, (torch.int64,)).contiguous(),
    )
    paths = (
        _updated("path_sums", path_sums, rows, torch.int64),
        _updated("path_counts", path_counts, rows, _INT32),
    )
    if active is not None:
        active = row_tensor("active", active, rows, (torch.bool,)).contiguous()
    how = (score == "tempered", denominator == "union")
    return Sampling(*options, *keys, *paths, active, *how)
