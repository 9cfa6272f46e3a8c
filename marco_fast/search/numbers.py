"""Numbers from outside: what executors, callbacks and callers hand in, as plain int and float.

Whatever is or holds one number counts (NumPy's, PyTorch's, Decimal, Fraction); text never does.
"""

import math
import operator
import reprlib
from collections.abc import Iterable
from typing import Any

__all__ = ["action_columns", "as_float", "as_int", "shown"]

ROUNDING = 1e-3  # by which a confidence that somebody else computed may be above 1
LEAST_LOGPROB, LARGEST_LOGPROB = -3.5e38, 100.0  # below any float32; exp() of it is a float
_SCORES = {float, type(None)}


def as_int(value: object) -> int | None:
    """`value` as an int; None where it is no integer. True and False are none."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except Exception:  # a TypeError, or what the value's own class raises
        return None


def as_float(value: object) -> float | None:
    """`value` as a finite float; None where it is no such number, or an array of several."""
    text = isinstance(value, str | bytes | bytearray)
    if text or isinstance(value, complex) or getattr(value, "shape", ()) != ():
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except Exception:  # as above; an int that is too large for a float is an OverflowError
        return None
    return number if math.isfinite(number) else None


def action_columns(
    token_ids: Iterable[Any], logprobs: Iterable[Any], confidences: Iterable[Any]
) -> tuple[list[int], list[float | None], list[float | None]]:
    """The columns of an action as new lists of plain numbers.

    Raises:
        ValueError: they are not as Search.grow() says.
    """
    ids = _token_ids(token_ids)
    scores = _scores("logprobs", logprobs, LEAST_LOGPROB, LARGEST_LOGPROB)
    shares = _scores("confidences", confidences, 0.0, 1.0 + ROUNDING)
    if not ids or not len(ids) == len(scores) == len(shares):
        raise ValueError(
            "expected token_ids, logprobs and confidences of one length above 0, got "
            f"{len(ids)}, {len(scores)} and {len(shares)}"
        )
    if [each is None for each in scores] != [each is None for each in shares]:
        raise ValueError(
            "expected logprobs and confidences to be None for the same tokens, got "
            f"{shown(scores)} and {shown(shares)}"
        )
    return ids, scores, shares


def shown(value: object) -> str:
    """A value for an error message: short, whatever it is."""
    try:
        return reprlib.repr(value)
    except Exception:  # an int of more digits than Python prints, or the class's own failure
        return f"a {type(value).__name__}"


def _token_ids(values: Iterable[Any]) -> list[int]:
    """Token ids as a new list of int; of str where an executor knows its tokens by texts alone.

    Raises:
        ValueError: one is not an integer from 0 to 2^31 - 1.
    """
    ids = _listed("token_ids", values)
    kinds = {*map(type, ids)}
    if kinds == {str}:
        return ids
    if kinds != {int}:
        ids = [_required("token_ids", as_int(each), each) for each in ids]
    if ids and not (min(ids) >= 0 and max(ids) < 2**31):
        raise ValueError(f"expected token_ids from 0 to 2^31 - 1, got {shown(ids)}")
    return ids


def _scores(name: str, values: Iterable[Any], low: float, high: float) -> list[float | None]:
    """Scores of tokens, None where a token has none, as a new list.

    Raises:
        ValueError: one is neither None nor a finite number from `low` to `high`.
    """
    scores = _listed(name, values)
    if not {*map(type, scores)} <= _SCORES:
        scores = [None if each is None else _required(name, _score(each), each) for each in scores]
    scored = [each for each in scores if each is not None]
    if scored and not (math.isfinite(sum(scored)) and min(scored) >= low and max(scored) <= high):
        raise ValueError(f"expected finite {name} from {low:g} to {high:g}, got {shown(scores)}")
    return scores


def _score(value: object) -> float | None:
    return None if isinstance(value, bool) else as_float(value)


def _listed(name: str, values: Iterable[Any]) -> list[Any]:
    try:
        return list(values)
    except TypeError:
        raise ValueError(f"expected {name} as a list, got {shown(values)}") from None


def _required(name: str, number: Any, value: object) -> Any:
    if number is None:
        raise ValueError(f"expected {name} to be finite numbers, got {shown(value)}")
    return number
