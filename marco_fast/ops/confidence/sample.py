"""topk_confidence and sample_confidence: check arguments, allocate results, run a backend."""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch

from marco_fast.ops.backends import load_backend
from marco_fast.ops.reference.confidence import SampledTokens, TopKConfidence

__all__ = [
    "LOGIT_DTYPES",
    "SampledTokens",
    "Sampling",
    "TopKConfidence",
    "check_scoring",
    "empty_samples",
    "sample_confidence",
    "sampling_arguments",
    "topk_confidence",
]

LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SMALLEST = torch.finfo(torch.float32).tiny
_LARGEST = torch.finfo(torch.float32).max
_INT32_MAX = 2**31 - 1
_FLOAT32, _INT32, _INDEXES = torch.float32, torch.int32, (torch.int64, torch.int32)
_empty = torch.empty


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

    def as_rows(self) -> "Sampling":
        """The same with every option as a tensor."""
        temperature, top_p, min_p, sample_top_k, seeds, positions, *paths = self
        return Sampling(
            _filled(temperature, seeds, False),
            _filled(top_p, seeds, False),
            _filled(min_p, seeds, False),
            _filled(sample_top_k, seeds, True),
            seeds,
            positions,
            *paths,
        )


def _check_logits(logits: torch.Tensor, top_k: int, denominator: str) -> None:
    if not isinstance(logits, torch.Tensor) or logits.dtype not in LOGIT_DTYPES:
        got = logits.dtype if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"expected logits as a tensor of float32, bfloat16 or float16, got {got}")
    if logits.dim() != 2:
        raise ValueError(f"expected logits [B, V], got shape {tuple(logits.shape)}")
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        raise ValueError(
            f"expected logits whose last dimension is contiguous, got strides {logits.stride()}"
        )
    check_scoring(logits.shape[1], top_k, denominator)


def check_scoring(vocabulary: int, top_k: int, denominator: str) -> None:
    if vocabulary > _INT32_MAX:
        raise ValueError(f"expected V < 2^31, got {vocabulary}")
    if not isinstance(top_k, int) or not 1 <= top_k <= vocabulary:
        raise ValueError(f"expected 1 <= top_k <= {vocabulary} (V), got {top_k!r}")
    if denominator not in ("top_k", "union"):
        raise ValueError(f"expected denominator to be 'top_k' or 'union', got {denominator!r}")


def _check_row_tensor(
    name: str,
    value: torch.Tensor,
    logits: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
) -> None:
    """Raises unless `value` is a [B] tensor of one of `dtypes` on the logits' device."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"expected {name} as a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise ValueError(f"expected {name} of {' or '.join(map(str, dtypes))}, got {value.dtype}")
    if value.dim() != 1 or len(value) != len(logits):
        raise ValueError(f"expected {name} [{len(logits)}], got shape {tuple(value.shape)}")
    if not (value.is_cpu and logits.is_cpu) and value.device != logits.device:
        raise ValueError(f"expected {name} on {logits.device}, got {value.device}")


def _check_updated(
    name: str, value: torch.Tensor | None, logits: torch.Tensor, dtype: torch.dtype
) -> None:
    if value is None:
        return
    _check_row_tensor(name, value, logits, (dtype,))
    if not value.is_contiguous():
        raise ValueError(f"expected {name} contiguous, got stride {value.stride()}")


def _row_option(
    name: str,
    value: float | torch.Tensor,
    logits: torch.Tensor,
    dtype: torch.dtype,
    low: float,
    high: float,
) -> Any:
    """The option as a contiguous [B] tensor of `dtype` or a number, its values in [low, high].

    The values of a tensor on another device than the CPU are not looked at: that would wait for it.
    """
    if isinstance(value, torch.Tensor):
        allowed: tuple[torch.dtype, ...] = (torch.float64, *LOGIT_DTYPES)
        if dtype == torch.int32:
            allowed = (torch.int32, torch.int64)
        _check_row_tensor(name, value, logits, allowed)
        if value.device.type == "cpu" and value.shape[0] > 0:
            values = value.float().numpy() if dtype == torch.float32 else value.numpy()
            least, most = np.minimum.reduce(values), np.maximum.reduce(values)
            if not (least >= low and most <= high):
                raise ValueError(f"expected {name} in [{low}, {high}], got {least} to {most}")
        return value.to(dtype).contiguous()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"expected {name} as a number or a tensor, got {type(value).__name__}")
    if dtype == torch.int32 and not isinstance(value, int):
        raise ValueError(f"expected {name} as an integer, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"expected {name} in [{low}, {high}], got {value}")
    return int(value) if dtype == _INT32 else float(value)


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


def _empty_scores(rows: int, top_k: int, device: torch.device) -> TopKConfidence:
    # Global names, not torch.float32 and the like: between other work of a decode step each lookup
    # in a cold module dictionary costs a microsecond.
    return TopKConfidence(
        _empty(rows, dtype=_FLOAT32, device=device),
        _empty(rows, dtype=_FLOAT32, device=device),
        _empty(rows, dtype=_FLOAT32, device=device),
        _empty((rows, top_k), dtype=_FLOAT32, device=device),
        _empty((rows, top_k), dtype=_INT32, device=device),
        _empty(rows, dtype=_INT32, device=device),
    )


def empty_samples(rows: int, top_k: int, device: torch.device) -> SampledTokens:
    """What a backend fills."""
    return SampledTokens(
        _empty(rows, dtype=_INT32, device=device),
        *_empty_scores(rows, top_k, device),
        _empty(rows, dtype=_FLOAT32, device=device),
    )


def sampling_arguments(
    rows: torch.Tensor,
    temperature: float | torch.Tensor,
    top_p: float | torch.Tensor,
    min_p: float | torch.Tensor,
    sample_top_k: int | torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    score: str,
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
    lowest = _SMALLEST if score == "tempered" else 0.0
    options = (
        _row_option("temperature", temperature, rows, torch.float32, lowest, _LARGEST),
        _row_option("top_p", top_p, rows, torch.float32, _SMALLEST, 1.0),
        _row_option("min_p", min_p, rows, torch.float32, 0.0, 1.0),
        _row_option("sample_top_k", sample_top_k, rows, torch.int32, 0, _INT32_MAX),
    )
    _check_row_tensor("seeds", seeds, rows, (torch.int64,))
    _check_row_tensor("positions", positions, rows, (torch.int64,))
    _check_updated("path_sums", path_sums, rows, torch.int64)
    _check_updated("path_counts", path_counts, rows, torch.int32)
    if active is not None:
        _check_row_tensor("active", active, rows, (torch.bool,))
        active = active.contiguous()
    keys = (seeds.contiguous(), positions.contiguous())
    return Sampling(*options, *keys, path_sums, path_counts, active)


def topk_confidence(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    top_k: int = 5,
    temperature: float = 1.0,
    denominator: str = "top_k",
    backend: str | None = None,
) -> TopKConfidence:
    """The confidence of each row's token: exp(z_t / T) / sum of exp(z_k / T) over the k largest.

    NaN logits are read as -inf; m logits of +inf share the probability (1 / m each).

    Args:
        logits: [B, V] float32, bfloat16 or float16; last dimension contiguous, any row stride.
        token_ids: [B] int32 or int64, in [0, V).
        top_k: how many of the largest are summed and returned; 1 to V.
        temperature: T > 0, finite.
        denominator: "top_k", or "union" to add the token itself where its logit is below the k-th.
        backend: "cpu", "triton" or "torch"; None takes the device's own.

    Returns:
        TopKConfidence; the k largest are ordered by logit descending, then id ascending. Fewer than
        top_k logits above -inf: id -1, logprob -inf. None: confidence 0, lse -inf, status bit 4.

    Raises:
        ValueError: a dtype, shape, stride or range that is not as above.
        IndexError: a token id outside [0, V) on a CPU (elsewhere status bit 8).
        BackendError: the named backend cannot run here.
    """
    _check_logits(logits, top_k, denominator)
    _check_row_tensor("token_ids", token_ids, logits, _INDEXES)
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise ValueError(f"expected temperature as a number, got {type(temperature).__name__}")
    if not _SMALLEST <= temperature <= _LARGEST:
        raise ValueError(f"expected temperature in [{_SMALLEST}, {_LARGEST}], got {temperature}")
    rows, vocabulary = logits.shape
    device = logits.device
    if logits.is_cpu and rows > 0:
        ids = token_ids.tolist()
        if min(ids) < 0 or max(ids) >= vocabulary:
            got = f"{min(ids)} to {max(ids)}"
            raise IndexError(f"expected token ids in [0, {vocabulary}), got {got}")
    module = load_backend(backend, device, "topk_confidence")
    result = _empty_scores(rows, top_k, device)
    module.topk_confidence(
        logits, token_ids.contiguous(), float(temperature), denominator == "union", *result
    )
    return result


def sample_confidence(
    logits: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    top_p: float | torch.Tensor = 1.0,
    min_p: float | torch.Tensor = 0.0,
    sample_top_k: int | torch.Tensor = 0,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    top_k: int = 5,
    score: str = "raw",
    denominator: str = "top_k",
    path_sums: torch.Tensor | None = None,
    path_counts: torch.Tensor | None = None,
    active: torch.Tensor | None = None,
    backend: str | None = None,
) -> SampledTokens:
    """Draws a token of each row and scores it, in one pass over the logits.

    The token is drawn from softmax(logits / temperature), cut to the sample_top_k largest, to the
    shortest prefix (by logit, then id) whose mass reaches top_p of the whole, and to probabilities
    of at least min_p times the largest; what is left is renormalised once. The draw depends on
    (seed, position, logits) and the row's own options alone.

    Args:
        logits: [B, V] float32, bfloat16 or float16; last dimension contiguous, any row stride.
        temperature: >= 0, a number or float [B]; below 1e-5 the largest logit wins, the smaller id
            among equals.
        top_p: in (0, 1], a number or float [B]; 1: off.
        min_p: in [0, 1], a number or float [B]; 0: off.
        sample_top_k: >= 0, a number or int [B]; 0: off.
        seeds, positions: [B] int64, any value.
        top_k: how many of the largest the confidence sums; 1 to V.
        score: "raw" scores softmax(logits), "tempered" softmax(logits / temperature), which needs
            temperature > 0.
        denominator: "top_k", or "union" to add the token itself where its logit is below the k-th.
        path_sums: [B] int64, contiguous: the confidence in units of 2^-40 is added in place.
        path_counts: [B] int32, contiguous: 1 is added in place.
        active: [B] bool: which rows add to their path; None: all.
        backend: "cpu", "triton" or "torch"; None takes the device's own.

    Returns:
        SampledTokens; confidence, logprobs, lse and entropy describe the scored distribution. A row
        without a logit above -inf gives token -1, confidence 0, entropy 0, status bit 4.

    Raises:
        ValueError: a dtype, shape, stride or range that is not as above.
        BackendError: the named backend cannot run here.
    """
    _check_logits(logits, top_k, denominator)
    sampling = sampling_arguments(
        logits, temperature, top_p, min_p, sample_top_k, seeds, positions, score,
        path_sums, path_counts, active,
    )  # fmt: skip
    module = load_backend(backend, logits.device, "topk_confidence")
    result = empty_samples(logits.shape[0], top_k, logits.device)
    module.sample_confidence(logits, sampling, score == "tempered", denominator == "union", *result)
    return result
