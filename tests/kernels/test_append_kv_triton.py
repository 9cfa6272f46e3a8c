"""The Triton append_kv, in the interpreter, against the C++ kernel."""

import pytest
import torch

import marco_fast as mf
from tests.support.caches import append_inputs, same_caches

pytestmark = pytest.mark.usefixtures("in_interpreter")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "heads", "page_size", "head_dim"),
    [(0, 1, 16, 32), (1, 1, 16, 32), (5, 2, 8, 64), (7, 3, 24, 80), (4, 9, 1, 256)],
)
def test_interpreter_equals_the_cpu(tokens, heads, page_size, head_dim, dtype):
    k, v, pool, slots = append_inputs(tokens, tokens, heads, page_size, head_dim, dtype, pages=8)
    slots[1:2] = -1
    want = pool.clone()
    mf.append_kv(k, v, want[0, :, 1 : heads + 1], want[1, :, :heads], slots, backend="cpu")
    mf.append_kv(k, v, pool[0, :, 1 : heads + 1], pool[1, :, :heads], slots, backend="triton")
    assert same_caches(pool, want)


@pytest.mark.parametrize("slot", [-2, 96, 2**40])
def test_interpreter_refuses_a_slot_outside(slot):
    k, v, pool, slots = append_inputs(1, 3, 2, 16, 32, torch.float32)
    slots[2] = slot
    with pytest.raises(IndexError, match=r"slot_mapping\[2\] in -1..95"):
        mf.append_kv(k, v, pool[0, :, :2], pool[1, :, :2], slots, backend="triton")
    assert pool.isnan().all()
