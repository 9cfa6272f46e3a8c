"""append_kv: every slot where it belongs, nothing anywhere else, nothing at all on an error."""

import pytest
import torch

import marco_fast as mf
from tests.support.caches import append_inputs, same_caches

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = ["cpu", "torch"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "heads", "page_size", "head_dim"),
    [(0, 1, 16, 32), (1, 1, 16, 32), (5, 2, 8, 64), (40, 3, 16, 128), (11, 1, 1, 16),
     (17, 4, 24, 80), (90, 2, 128, 256)],
)  # fmt: skip
def test_rows_land_in_their_slots(tokens, heads, page_size, head_dim, dtype, backend):
    pages = max(6, -(-tokens // page_size) + 5)
    k, v, pool, slots = append_inputs(tokens, tokens, heads, page_size, head_dim, dtype, pages)
    want = pool.clone()
    for t, slot in enumerate(slots.tolist()):
        want[0, slot // page_size, 1 : heads + 1, slot % page_size] = k[t]
        want[1, slot // page_size, :heads, slot % page_size] = v[t]
    mf.append_kv(k, v, pool[0, :, 1 : heads + 1], pool[1, :, :heads], slots, backend=backend)
    assert same_caches(pool, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_slot_minus_one_is_skipped(backend):
    k, v, pool, slots = append_inputs(0, 6, 2, 16, 32, torch.float32)
    slots[[1, 4]] = -1
    mf.append_kv(k, v, pool[0, :, :2], pool[1, :, :2], slots, backend=backend)
    other = torch.full_like(pool, torch.nan)
    kept = [0, 2, 3, 5]
    mf.append_kv(k[kept], v[kept], other[0, :, :2], other[1, :, :2], slots[kept])
    assert same_caches(pool, other)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("slot", [-2, 96, 2**40, -(2**62)])
def test_a_slot_outside_writes_nothing(slot, backend):
    k, v, pool, slots = append_inputs(1, 6, 2, 16, 32, torch.bfloat16)
    slots[5] = slot
    with pytest.raises(IndexError, match=rf"slot_mapping\[5\] in -1..95, got {slot}"):
        mf.append_kv(k, v, pool[0, :, :2], pool[1, :, :2], slots, backend=backend)
    assert pool.isnan().all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_write_the_same(threads):
    k, v, pool, slots = append_inputs(3, 900, 4, 16, 128, torch.float32, pages=60)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        mf.append_kv(k, v, pool[0, :, :4], pool[1, :, :4], slots)
    finally:
        torch.set_num_threads(before)
    page, offset = slots // 16, slots % 16
    assert torch.equal(pool[0, page, :4, offset], k)
    assert torch.equal(pool[1, page, :4, offset], v)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(3, 2, 33)}, "k and v"),
        ({"k": torch.zeros(3, 2, 32, dtype=torch.float16)}, "one dtype"),
        ({"k": torch.zeros(3, 2, 64)[:, :, ::2]}, "contiguous last dimension"),
        ({"k": torch.zeros(3, 64), "v": torch.zeros(3, 64)}, "k and v"),
        ({"k_cache": torch.zeros(4, 3, 16, 32)}, "expected k_cache"),
        ({"v_cache": torch.zeros(4, 2, 16, 48)}, "expected v_cache"),
        ({"v_cache": torch.zeros(5, 2, 16, 32)}, "one shape"),
        ({"k_cache": torch.zeros(4, 2, 32, 16).transpose(2, 3)}, "contiguous in its last two"),
        ({"v_cache": torch.zeros(4, 2, 32, 32)[:, :, ::2]}, "contiguous in its last two"),
        ({"slots": torch.zeros(3, dtype=torch.int32)}, "slot_mapping"),
        ({"slots": torch.zeros(4, dtype=torch.int64)}, "slot_mapping"),
        ({"slots": torch.zeros(6, dtype=torch.int64)[::2]}, "slot_mapping"),
        ({name: torch.zeros(3, 2, 32).double() for name in "kv"}, "one dtype"),
    ],
)
def test_bad_input(change, message):
    given = {
        "k": torch.zeros(3, 2, 32),
        "v": torch.zeros(3, 2, 32),
        "k_cache": torch.zeros(4, 2, 16, 32),
        "v_cache": torch.zeros(4, 2, 16, 32),
        "slots": torch.arange(3),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        mf.append_kv(*given.values())
