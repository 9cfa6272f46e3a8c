"""Whatever a program has set in PyTorch, an operation gives the same bits; what is no memory is
refused."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import marco_fast as mf
from tests.support.settings import SETTINGS, TRANSFORMS

BACKENDS = ["cpu", "torch"]
ROWS, VOCAB, HIDDEN = 3, 300, 64


def random(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(sum(shape)).standard_normal(shape, np.float32))


# Everything is made here: inside a mode even a slice of a tensor is what the mode makes of it.
LOGITS, HEAD = 4 * random(ROWS, VOCAB), (random(ROWS, HIDDEN), random(VOCAB, HIDDEN))
CUT, BIAS = {(0, 100): HEAD[1][:100], (100, VOCAB): HEAD[1][100:]}, LOGITS[0]
KEYS = {"seeds": torch.arange(ROWS), "positions": torch.arange(ROWS) + 7}
TOKENS, LAST = torch.tensor([0, 5, 9]), torch.tensor([False, True])
WARM = {"temperature": torch.tensor([0.7, 0.0, 2.0]), "top_p": 0.9, "min_p": 0.01}
PLAN = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "page_size": 8}
TREE = ([-1, 0, 0], [20, 3, 5], np.arange(9, dtype=np.int32).reshape(3, 3), [1, 2, 1])
CACHES, SLOTS = [*random(2, 9, 2, 8, 32)], torch.tensor([3, 60, -1, 0, 9])
KV, Q, Q2 = [*random(2, 5, 2, 32)], random(3, 4, 32), random(2, 4, 32)
HEAD64, POOL = [each.double().numpy() for each in HEAD], random(2, 9, 2, 8, 32).numpy()


def topk(backend):
    return mf.topk_confidence(LOGITS, TOKENS, backend=backend)


def sample(backend):
    sums = np.zeros(ROWS, np.int64)
    drawn = mf.sample_confidence(LOGITS, **KEYS, **WARM, path_sums=sums, backend=backend)
    return (*drawn, sums)


def lm_head(backend):
    return mf.lm_head_confidence(*HEAD, **KEYS, **WARM, bias=BIAS, backend=backend)


def shards(backend):
    records = [
        mf.lm_head_records(HEAD[0], part, cut[0], VOCAB, **WARM, backend=backend)
        for cut, part in CUT.items()
    ]

    def logits_of(shard, rows):
        part = slice(*[*CUT][shard])
        return (HEAD64[0] @ HEAD64[1][part].T)[rows.tolist()].astype(np.float32)

    return mf.merge_records(records, logits_of, **KEYS, **WARM)


def append(backend):
    caches = POOL.copy()
    mf.append_kv(*KV, *caches, SLOTS, backend=backend)
    return [caches]


def attend(backend):
    plan = mf.plan_tree_attention(*TREE, **PLAN, leaf_lens=[1, 5, 3])
    return mf.tree_attention(Q, *CACHES, plan, return_lse=True, backend=backend)


def grow(backend):
    plan = mf.plan_tree_attention(*TREE[:3], [1, 2], **PLAN, max_new_tokens=2, room=2.0)
    plan.advance([True, False])
    plan.update(TREE[0], [18, 2, 5], TREE[2], [1, 2])
    plan.advance(LAST)
    return (mf.tree_attention(Q2, *CACHES, plan, backend=backend),)


def cache(backend):
    pool = mf.PagedKVCache(
        1, 8, page_size=4, num_kv_heads=1, head_dim=16, dtype=torch.float32, device="cpu"
    )
    node = pool.add_root()
    slots = (pool.extend(node, 5), pool.slots_ahead([node], 3), pool.slot_mapping(node))
    pool.evict(node)
    return (*slots, pool.restore(node))


OPERATIONS = [topk, sample, lm_head, shards, append, attend, grow, cache]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_changes_no_bit(setting, operation, backend):
    want = operation(backend)
    with SETTINGS[setting]():
        got = operation(backend)
    assert all(map(same_bits, got, want))


def same_bits(got: torch.Tensor | np.ndarray, want: torch.Tensor | np.ndarray) -> bool:
    same = (type(got), got.dtype, got.shape) == (type(want), want.dtype, want.shape)
    return same and np.asarray(got).tobytes() == np.asarray(want).tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_around_a_call_changes_no_bit(transform, operation, backend):
    want, got = operation(backend), []

    def inside(x):
        got.extend(operation(backend))
        return x.sum()

    TRANSFORMS[transform](inside)
    assert all(map(same_bits, got, want))


@pytest.mark.filterwarnings("ignore:Dynamo does not know")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("operation", [sample, lm_head], ids=lambda each: each.__name__)
def test_a_compiled_caller_changes_no_bit(operation):
    want = operation("cpu")
    got = torch.compile(lambda: operation("cpu"), backend="eager")()
    assert all(map(same_bits, got, want))


def test_a_setting_is_as_before_after_an_error():
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match="expected token_ids"):
            mf.topk_confidence(LOGITS, [0])
        assert torch.empty(1).device.type == "meta"
        assert torch.is_autocast_enabled("cpu")


def test_products_are_exact_in_all_threads_and_the_setting_comes_back():
    """Another thread leaves while one is still inside."""
    hidden, weight = random(128, 1024), random(512, 1024)
    keys = {"seeds": torch.arange(128), "positions": torch.arange(128)}

    def scores() -> torch.Tensor:
        torch.set_num_threads(1)  # each thread's own: a product's bits depend on it
        return mf.lm_head_confidence(hidden, weight, **keys, backend="torch").lse

    with ThreadPoolExecutor(1) as pool:
        want = pool.submit(scores).result()
    with SETTINGS["products in bfloat16"](), ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(each, want) for each in pool.map(lambda _: scores(), range(12)))
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == "highest"
