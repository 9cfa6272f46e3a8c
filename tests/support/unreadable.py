"""Every operation with every tensor that is no memory of its own, one line a case.

A program of its own: where a check is missing, a kernel kills the process.

    python -m tests.support.unreadable
"""

import json
from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode

import marco_fast as mf

ROWS, VOCAB = 4, 1000
KEYS = torch.arange(ROWS)
LOGITS, HIDDEN, WEIGHT = torch.ones(ROWS, VOCAB), torch.ones(ROWS, 16), torch.ones(VOCAB, 16)
K, CACHE, SLOTS = torch.ones(2, 1, 16), torch.zeros(3, 1, 4, 16), torch.tensor([1, 2])
Q = torch.ones(1, 1, 16)
PLAN = mf.plan_tree_attention(
    [-1],
    [3],
    torch.zeros(1, 1, dtype=torch.int32),
    [0],
    num_heads=1,
    num_kv_heads=1,
    head_dim=16,
    page_size=4,
)

# Of each operation: a call, and the arguments of which one at a time is replaced.
CALLS: dict[str, tuple[Callable, dict[str, torch.Tensor]]] = {
    "topk_confidence": (mf.topk_confidence, {"logits": LOGITS, "token_ids": KEYS}),
    "sample_confidence": (
        mf.sample_confidence,
        {
            "logits": LOGITS,
            "seeds": KEYS,
            "positions": KEYS,
            "temperature": torch.ones(ROWS),
            "path_sums": torch.zeros_like(KEYS),
            "active": KEYS > 1,
        },
    ),
    "lm_head_confidence": (
        mf.lm_head_confidence,
        {
            "hidden": HIDDEN,
            "weight": WEIGHT,
            "bias": torch.ones(VOCAB),
            "seeds": KEYS,
            "positions": KEYS,
        },
    ),
    "lm_head_records": (
        lambda hidden, weight: mf.lm_head_records(hidden, weight, 0, VOCAB),
        {"hidden": HIDDEN, "weight": WEIGHT},
    ),
    "append_kv": (
        mf.append_kv,
        {
            "k": K,
            "v": K,
            "k_cache": CACHE,
            "v_cache": torch.zeros_like(CACHE),
            "slot_mapping": SLOTS,
        },
    ),
    "tree_attention": (
        lambda **tensors: mf.tree_attention(plan=PLAN, **tensors),
        {
            "q": Q,
            "k_cache": CACHE,
            "v_cache": CACHE,
            "out": torch.zeros_like(Q),
            "workspace": torch.zeros(PLAN.workspace_numel + 1),
        },
    ),
}


class Wrapper(torch.Tensor):
    """A subclass with a shape and no memory."""

    @staticmethod
    def __new__(cls, like):
        return torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError


def shrunk(size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        copy.untyped_storage().resize_(size)
        return copy

    return change


def fake(tensor: torch.Tensor) -> torch.Tensor:
    with FakeTensorMode() as mode:
        return mode.from_tensor(tensor)


def functional(tensor: torch.Tensor) -> torch.Tensor:
    with FunctionalTensorMode():
        return FunctionalTensor.to_functional(tensor)


UNREADABLE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "fake": fake,
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "mkldnn": lambda t: t.float().to_mkldnn(),
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
    "freed": shrunk(0),
    "shrunk": shrunk(1),
    "a wrapper": Wrapper,
    "functional": functional,
    "zeros without memory": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
}
# Inside of these a function's argument is such a tensor.
TRANSFORMS: dict[str, Callable] = {
    "vmap": lambda f, t: torch.vmap(f)(t[None]),
    "grad": lambda f, t: torch.func.grad(f)(t),
    "functionalize": lambda f, t: torch.func.functionalize(f)(t),
}


def outcome(run: Callable[[], object]) -> str:
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "a result"


def main() -> None:
    for operation, (call, tensors) in CALLS.items():
        for name, tensor in tensors.items():

            def replaced(other, call=call, tensors=tensors, name=name):
                call(**{**tensors, name: other})
                return torch.zeros(())

            for kind, change in UNREADABLE.items():
                got = outcome(lambda change=change, t=tensor, f=replaced: f(change(t)))
                print(json.dumps([f"{operation} {name} {kind}", got]), flush=True)
            for kind, transform in TRANSFORMS.items():
                if kind == "grad" and not tensor.is_floating_point():
                    continue
                got = outcome(lambda run=transform, t=tensor, f=replaced: run(f, t))
                print(json.dumps([f"{operation} {name} in {kind}", got]), flush=True)


if __name__ == "__main__":
    main()
