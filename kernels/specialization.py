"""`jit`: kernels that take NamedTuples and are compiled once, whatever the numbers in them.

Triton compiles a kernel anew for an integer that is 1 and for a pointer or integer that is a
multiple of 16. `do_not_specialize` turns that off for a parameter, but Triton (3.6) forgets it for
what is inside of a tuple. Here it holds there too.
"""

from collections.abc import Callable
from typing import Any

import triton
from triton.runtime.jit import JITFunction

__all__ = ["jit"]


def jit(do_not_specialize: list[str]) -> Callable[[Callable[..., None]], Any]:
    """As triton.jit; `do_not_specialize` names numbers and tuples of pointers and numbers."""

    def decorate(kernel: Callable[..., None]) -> Any:
        if triton.knobs.runtime.interpret:
            return triton.jit(kernel)
        return Kernel(kernel, do_not_specialize=do_not_specialize)

    return decorate


class Kernel(JITFunction):
    """A kernel of `jit`."""

    def create_binder(self) -> Any:
        """What Triton asks for once per device: the last of it finds a launch's specialisation."""
        *others, bind = super().create_binder()
        loose = [param.num for param in self.params if param.do_not_specialize]
        known: dict[Any, Any] = {}

        def bind_loosely(*args: Any, **options: Any) -> Any:
            bound, specialization, options = bind(*args, **options)
            for num in loose:
                found = specialization[num]
                if found not in known:
                    known[found] = unspecialized(*found)
                specialization[num] = known[found]
            return bound, specialization, options

        return *others, bind_loosely


def unspecialized(kind: Any, key: Any) -> tuple[Any, Any]:
    """The type of an argument and what else Triton looked at, without the latter.

    Args:
        kind: "*fp32", "i32", "constexpr" and the like, or a tuple of them.
        key: None, a text of attributes, or the value of a constexpr; a tuple beside a tuple.
    """
    if isinstance(kind, tuple):
        inside = [unspecialized(*each) for each in zip(kind, key, strict=True)]
        make = getattr(type(kind), "_make", tuple)
        return make(each for each, _ in inside), make(each for _, each in inside)
    if kind == "constexpr":  # None, or an integer that is 1
        return ("i32", None) if type(key) is int else (kind, key)
    return kind, None
