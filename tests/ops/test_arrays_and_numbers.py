"""NumPy's numbers count as numbers; arrays and what speaks DLPack count as tensors."""

import numpy as np
import pytest
import torch

import marco_fast as mf

BACKENDS = ["cpu", "torch"]
RNG = np.random.default_rng(3)
LOGITS = RNG.standard_normal((3, 40)).astype(np.float32)
HIDDEN, WEIGHT = LOGITS[:, :16], RNG.standard_normal((40, 16)).astype(np.float32)
SEEDS, TOKENS = np.array([3, 5, 2**40]), np.array([1, 0, 39])
OPTIONS = {"temperature": 0.5, "top_p": 0.75, "min_p": 0.125, "sample_top_k": 20, "top_k": 4}
HEADS = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "page_size": 4}
TABLE = np.arange(6, dtype=np.int32).reshape(3, 2)


class Shared:
    """Another library's tensor: all it has is DLPack."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.__dlpack_device__ = array.__dlpack_device__

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)


class Named(torch.Tensor):
    """A subclass over real memory."""


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


KINDS = {
    "numpy": lambda array: array,
    "read-only": read_only,
    "dlpack": Shared,
    "subclass": lambda array: torch.from_numpy(array).as_subclass(Named),
    "parameter": lambda array: torch.nn.Parameter(
        torch.from_numpy(array), requires_grad=array.dtype == np.float32
    ),
    "negated view": lambda array: torch._neg_view(torch.from_numpy(-array)),
}
NUMBERS = {
    "numpy": lambda x: np.int64(x) if isinstance(x, int) else np.float32(x),
    "small numpy": lambda x: np.uint8(x) if isinstance(x, int) else np.float16(x),
    "0-dim array": np.array,
    "0-dim tensor": torch.tensor,
    "0-dim tensor that requires grad": lambda x: torch.tensor(
        x, requires_grad=isinstance(x, float)
    ),
}


def tensors(make):
    """All operations, each given tensors as `make` makes them of arrays."""
    keys = {"seeds": make(SEEDS), "positions": make(SEEDS)}
    yield from mf.topk_confidence(make(LOGITS), make(TOKENS))
    yield from mf.sample_confidence(make(LOGITS), **keys, **OPTIONS)
    yield from mf.sample_confidence(make(LOGITS), **keys, top_p=make(LOGITS[:, 0] ** 2 % 1 + 1e-3))
    yield from mf.lm_head_confidence(make(HIDDEN), make(WEIGHT), **keys, bias=make(LOGITS[0]))
    records = mf.lm_head_records(make(HIDDEN), make(WEIGHT), 0, 40)
    yield from records[:6]
    yield from mf.merge_records(
        [records], lambda _, rows: make((HIDDEN @ WEIGHT.T)[rows.tolist()]), **keys
    )
    plan = mf.plan_tree_attention([-1, 0, 0], [8, 3, 0], TABLE, make(np.array([1, 0])), **HEADS)
    caches = make(RNG_CACHES[0]), make(RNG_CACHES[1])
    yield mf.tree_attention(make(QUERIES), *caches, plan)


RNG_CACHES = RNG.standard_normal((2, 6, 1, 4, 16)).astype(np.float32)
QUERIES = RNG.standard_normal((2, 2, 16)).astype(np.float32)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_what_counts_as_a_tensor(kind):
    def make(array: np.ndarray):
        return KINDS[kind](array)

    for got, want in zip(tensors(make), tensors(torch.from_numpy), strict=True):
        assert type(got) is torch.Tensor
        assert not got.requires_grad
        assert torch.equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["numpy", "dlpack", "subclass", "parameter"])
def test_what_is_written_in_place_is_written_through(kind, backend):
    keys = {"seeds": SEEDS, "positions": SEEDS}
    sums, counts = np.zeros(3, np.int64), np.zeros(3, np.int32)
    paths = {"path_sums": KINDS[kind](sums), "path_counts": KINDS[kind](counts)}
    drawn = mf.sample_confidence(LOGITS, **keys, **paths, backend=backend)
    assert counts.tolist() == [1, 1, 1]
    assert sums.tolist() == (drawn.confidence.double() * 2.0**40).round().long().tolist()
    k = RNG.standard_normal((2, 1, 16)).astype(np.float32)
    caches = np.zeros((2, 3, 1, 4, 16), np.float32)
    mf.append_kv(k, -k, *map(KINDS[kind], caches), np.array([5, 2]), backend=backend)
    assert (caches[0, [1, 0], 0, [1, 2]] == k[:, 0]).all()
    assert (caches[1, [1, 0], 0, [1, 2]] == -k[:, 0]).all()
    plan = mf.plan_tree_attention([-1], [6], TABLE[:1], [0, 0], **HEADS)
    out = np.zeros((2, 2, 16), np.float32)
    want = mf.tree_attention(QUERIES, *RNG_CACHES, plan, backend=backend)
    mf.tree_attention(QUERIES, *RNG_CACHES, plan, out=KINDS[kind](out), backend=backend)
    assert (out == want.numpy()).all()


@pytest.mark.parametrize("kind", ["read-only", "negated view"])
def test_what_cannot_be_written_is_refused(kind):
    caches = np.zeros((2, 3, 1, 4, 16), np.float32)
    k, slots = np.ones((1, 1, 16), np.float32), np.array([0])
    with pytest.raises(ValueError, match="expected v_cache"):
        mf.append_kv(k, k, caches[0], KINDS[kind](caches[1]), slots)
    keys = {"seeds": SEEDS, "positions": SEEDS}
    with pytest.raises(ValueError, match="expected path_sums"):
        mf.sample_confidence(LOGITS, **keys, path_sums=KINDS[kind](np.zeros(3, np.int64)))
    assert not caches.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (LOGITS.tolist(), "got list"),
        (None, "got NoneType"),
        ("logits", "got str"),
        (LOGITS[:, ::-1], "got ndarray: .*strides"),
        (LOGITS.astype(">f4"), "got ndarray"),
        (LOGITS.astype(object), "got ndarray"),
        (np.float32(3), "got float32"),
        (np.zeros((3, 40), [("a", "f4")]), "got ndarray"),
        (LOGITS.astype(np.complex64), "got torch.complex64"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_counts_as_no_tensor(wrong, message):
    with pytest.raises(ValueError, match=f"^expected logits as a tensor.*{message}"):
        mf.topk_confidence(wrong, TOKENS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", NUMBERS)
def test_what_counts_as_a_number(kind, backend):
    number = NUMBERS[kind]
    keys = {"seeds": SEEDS, "positions": SEEDS, "backend": backend}
    options = {name: number(value) for name, value in OPTIONS.items()}
    got = mf.sample_confidence(LOGITS, **keys, **options)
    assert all(map(torch.equal, got, mf.sample_confidence(LOGITS, **keys, **OPTIONS)))
    got = mf.topk_confidence(LOGITS, TOKENS, top_k=number(3), temperature=number(0.5))
    assert all(map(torch.equal, got, mf.topk_confidence(LOGITS, TOKENS, top_k=3, temperature=0.5)))
    sizes = {name: number(size) for name, size in HEADS.items()}
    more = {"max_new_tokens": number(2), "room": number(2.0)}
    plan = mf.plan_tree_attention([-1, 0], [3, 1], TABLE[:2], [1], **sizes, **more)
    plan.advance(np.array([True]))
    got = mf.tree_attention(QUERIES[:1], *RNG_CACHES, plan, scale=number(0.25), backend=backend)
    plan = mf.plan_tree_attention([-1, 0], [3, 2], TABLE[:2], [1], **HEADS)
    want = mf.tree_attention(QUERIES[:1], *RNG_CACHES, plan, scale=0.25, backend=backend)
    assert torch.equal(got, want)


@pytest.mark.parametrize("wrong", [True, np.bool_(True), torch.tensor(True), "1", None, 1j, [1]])
@pytest.mark.parametrize("name", [*OPTIONS, "scale"])
def test_what_counts_as_no_number(name, wrong):
    if name == "scale":
        plan = mf.plan_tree_attention([-1], [6], TABLE[:1], [0, 0], **HEADS)
        if wrong is not None:
            with pytest.raises(ValueError, match=r"^expected scale as a finite number, got"):
                mf.tree_attention(QUERIES, *RNG_CACHES, plan, scale=wrong)
        return
    with pytest.raises(ValueError, match=r"^expected (\w+ (as|of)|1 <= top_k)"):
        mf.sample_confidence(LOGITS, seeds=SEEDS, positions=SEEDS, **{name: wrong})
