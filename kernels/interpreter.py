"""Triton's interpreter, made to add like a GPU.

The interpreter (3.6) keeps bfloat16 as 16-bit integers: `tl.dot` multiplies those integers, and a
conversion from float32 truncates. And its products go through a BLAS, where a row's order of sums
depends on how many rows there are. A kernel that runs on CPU tensors inside `compiled_arithmetic()`
takes exact products, sums each row in float32 by itself, and rounds to nearest even.

It also patches `triton.language` anew at every call of a device function, a quarter of its time
with our kernels: inside, once a launch and module. And it takes arrays of one element for numbers,
which NumPy 2.4 no longer does.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

__all__ = ["compiled_arithmetic"]


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 as uint16 -> float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """float32 -> the nearest bfloat16 as uint16, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16)


def float32(x: Any) -> np.ndarray:
    return widen(x.data) if x.dtype.scalar == tl.bfloat16 else x.data.astype(np.float32)


def _arithmetic(cast: Any) -> tuple[Any, Any]:
    """The interpreter's matrix product and cast; `cast` is its own, for all types but bfloat16."""
    handle = interpreter.TensorHandle

    def create_dot(a: Any, b: Any, acc: Any, *options: Any) -> Any:
        right = float32(b)
        rows = np.stack([row @ right for row in float32(a)])
        return handle(rows + acc.data, acc.dtype.scalar)

    def cast_impl(source: Any, to: Any) -> Any:
        pair = source.dtype.scalar, to.scalar
        if pair == (tl.bfloat16, tl.float32):
            return handle(widen(source.data), tl.float32)
        if pair == (tl.float32, tl.bfloat16):
            return handle(narrow(source.data), tl.bfloat16)
        return cast(source, to)

    return create_dot, cast_impl


@contextlib.contextmanager
def compiled_arithmetic() -> Iterator[None]:
    """Until it is left, the interpreter is as described above."""
    builder: Any = interpreter.interpreter_builder
    scope: Any = interpreter._LangPatchScope
    patch, restore = interpreter._patch_lang, scope.restore
    patched: set[int] = set()

    def patch_once(function: Any) -> Any:
        module = id(function.__globals__)
        if module in patched:
            return None  # to a device function, which ignores it
        patched.add(module)
        patches = patch(function)
        patches.set_attr(tl.tensor, "__index__", lambda scalar: scalar.handle.data.item())
        return patches

    def restore_all(patches: Any) -> None:
        patched.clear()
        restore(patches)

    builder.create_dot, builder.cast_impl = _arithmetic(builder.cast_impl)
    interpreter._patch_lang, scope.restore = patch_once, restore_all
    try:
        # Infinities and NaN are silent on a GPU.
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
            yield
    finally:
        del builder.create_dot, builder.cast_impl
        interpreter._patch_lang, scope.restore = patch, restore
