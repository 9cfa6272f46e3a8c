"""What a program may have set in PyTorch, each as a context that puts it back."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["SETTINGS", "TRANSFORMS"]

Setting = Callable[[], contextlib.AbstractContextManager[object]]


class Logged(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Watched(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def put_back(get: Callable[[], object], put: Callable, value: object) -> Iterator[None]:
    before = get()
    try:
        put(value)
        yield
    finally:
        put(before)


def default_dtype(dtype: torch.dtype) -> Setting:
    return lambda: put_back(torch.get_default_dtype, torch.set_default_dtype, dtype)


def default_device(device: str) -> Setting:
    return lambda: put_back(lambda: None, torch.set_default_device, device)


def autocast(kind: str, dtype: torch.dtype) -> Setting:
    def enter() -> contextlib.AbstractContextManager[object]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a GPU that is not here
            return torch.autocast(kind, dtype)

    return enter


def forced_autocast(kind: str) -> Setting:
    return lambda: put_back(
        lambda: False, functools.partial(torch.set_autocast_enabled, kind), True
    )


@contextlib.contextmanager
def deterministic(warn_only: bool = False) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)  # memory is filled with NaN
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    try:
        torch.set_flush_denormal(True)
        yield
    finally:
        torch.set_flush_denormal(False)


SETTINGS: dict[str, Setting] = {
    "default dtype float64": default_dtype(torch.float64),
    "default dtype bfloat16": default_dtype(torch.bfloat16),
    "default dtype float16": default_dtype(torch.float16),
    "default device meta": default_device("meta"),
    "default device cuda": default_device("cuda"),
    "with device meta": lambda: torch.device("meta"),
    "with device cuda": lambda: torch.device("cuda"),
    "fake tensors": FakeTensorMode,
    "fake and real tensors": lambda: FakeTensorMode(allow_non_fake_inputs=True),
    "autocast bfloat16": autocast("cpu", torch.bfloat16),
    "autocast float16": autocast("cpu", torch.float16),
    "autocast of no GPU": autocast("cuda", torch.float16),
    "autocast forced on no GPU": forced_autocast("cuda"),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic": deterministic,
    "deterministic, warn only": lambda: deterministic(warn_only=True),
    "flushed denormals": flushed_denormals,
    "a mode of functions": Logged,
    "a mode of dispatch": Watched,
    "no mkldnn": lambda: put_back(
        torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled, False
    ),
    "products in bfloat16": lambda: put_back(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "attention of a kind that a CPU lacks": lambda: sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION),
}


ONE = torch.ones(3)
# Each runs a function of a tensor [3] that gives a number, inside a transform.
TRANSFORMS: dict[str, Callable[[Callable], object]] = {
    "grad": lambda f: torch.func.grad(f)(ONE),
    "vmap": lambda f: torch.vmap(f)(ONE[None]),
    "jvp": lambda f: torch.func.jvp(f, (ONE,), (ONE,)),
    "functionalize": lambda f: torch.func.functionalize(f)(ONE),
    "vmap of grad": lambda f: torch.vmap(torch.func.grad(f))(ONE[None]),
}
