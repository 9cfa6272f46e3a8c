"""What a thread has switched on in PyTorch does not reach inside the operations and the engine.

A default device and `with torch.device(...)` are modes of torch functions; FakeTensorMode is a mode
of dispatch, as users have of their own; the transforms of torch.func wrap every new tensor;
autocast rounds products; torch.compile cuts functions into pieces, between which a tensor is freed
that only C++ has the address of. All of them belong to the thread. Inside an `isolated` function
none of them is on, and afterwards all are as before. How float32 products are rounded, and the
default dtype, belong to the process: `exact_products`, `float32_default`.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["exact_products", "float32_default", "isolated"]

P = ParamSpec("P")
R = TypeVar("R")

# Whether a call must be isolated: PyTorch has no public way to ask that costs less than a call.
_function_modes = torch._C._len_torch_function_stack
_dispatch_modes = torch._C._len_torch_dispatch_stack
_any_autocast = torch._C._is_any_autocast_enabled
_transform = torch._C._functorch.peek_interpreter_stack
_trace_by = torch._C._dynamo.eval_frame.set_eval_frame
_tracer = torch._C._dynamo.eval_frame.get_eval_frame_callback
AUTOCAST = ("cpu", "cuda", "xpu", "mps")


def isolated(function: Callable[P, R]) -> Callable[P, R]:
    """The function, run as in a thread that has switched nothing on; where so it is, for 0.5 us."""

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        # The tracer first: the compiler cannot look into that question, and so runs all as it is.
        if (
            _tracer() is not None
            or _function_modes()
            or _dispatch_modes()
            or _any_autocast()
            or _transform() is not None
        ):
            with _isolation():
                return function(*args, **options)
        return function(*args, **options)

    return call


@contextlib.contextmanager
def _isolation() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.callback(_trace_by, _trace_by(None))
        # A wrapper of its own, which counts: what is made inside must be an ordinary tensor.
        if _transform() is not None:
            stack.enter_context(torch._C._DisableFuncTorch())
        if _dispatch_modes():
            stack.enter_context(_disable_current_modes())
        if _function_modes():
            stack.enter_context(_without_function_modes())
            stack.enter_context(torch.device("cpu"))  # torch.get_default_device knows it as well
        for kind in AUTOCAST:
            if torch.is_autocast_enabled(kind):
                torch.set_autocast_enabled(kind, False)
                stack.callback(torch.set_autocast_enabled, kind, True)
        yield


@contextlib.contextmanager
def _without_function_modes() -> Iterator[None]:
    modes = [torch._C._pop_torch_function_stack() for _ in range(_function_modes())]
    try:
        yield
    finally:
        for mode in reversed(modes):
            torch._C._push_on_torch_function_stack(mode)


class _ProcessWide:
    """A setting of the whole process, as it should be while any thread is inside.

    The last one out puts back what the first one in found.
    """

    def __init__(self, settle: Callable[[], list[Callable[[], object]]]) -> None:
        self.settle = settle
        self.lock = threading.Lock()
        self.inside = 0
        self.put_back: list[Callable[[], object]] = []

    def enter(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.put_back = self.settle()
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                for put_back in self.put_back:
                    put_back()

    def around(self, function: Callable[P, R]) -> Callable[P, R]:
        """The function, run inside."""

        @functools.wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> R:
            self.enter()
            try:
                return function(*args, **options)
            finally:
                self.leave()

        return call


def _settle_products() -> list[Callable[[], object]]:
    """Sets float32 products to float32; what puts the process's own setting back."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # each backend has a setting of its own, which this one cannot tell
        found: list[Callable[[], object]] = []
        each: Any
        for each in (torch.backends.mkldnn, torch.backends.cuda):
            each = each.matmul
            found.append(functools.partial(setattr, each, "fp32_precision", each.fp32_precision))
            each.fp32_precision = "ieee"
        return found
    if before == "highest":
        return []
    torch.set_float32_matmul_precision("highest")
    return [functools.partial(torch.set_float32_matmul_precision, before)]


def _settle_attention() -> list[Callable[[], object]]:
    """Allows both kinds of PyTorch's attention that a CPU has; without them it has none."""
    cuda = torch.backends.cuda  # whose settings a CPU obeys as well
    found: list[Callable[[], object]] = []
    for enabled, enable in (
        (cuda.math_sdp_enabled(), cuda.enable_math_sdp),
        (cuda.flash_sdp_enabled(), cuda.enable_flash_sdp),
    ):
        if not enabled:
            enable(True)
            found.append(functools.partial(enable, False))
    return found


def _settle_dtype() -> list[Callable[[], object]]:
    before = torch.get_default_dtype()
    if before == torch.float32:
        return []
    torch.set_default_dtype(torch.float32)
    return [functools.partial(torch.set_default_dtype, before)]


_products = _ProcessWide(lambda: [*_settle_products(), *_settle_attention()])
_dtype = _ProcessWide(_settle_dtype)


def exact_products(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with float32 products in float32: no TF32, no bfloat16.

    PyTorch's attention is there for any shape, too.
    """
    return _products.around(function)


def float32_default(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with float32 as the default dtype: for code that is not ours."""
    return _dtype.around(function)
