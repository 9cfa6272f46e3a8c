"""Plans at the border of integers and of types: a clear error, or the right plan."""

import numpy as np
import pytest
import torch

import marco_fast as mf
from marco_fast.ops.reference.plan import ReferencePlan

SMALL = {
    "parents": [-1, 0],
    "segment_lens": [3, 1],
    "block_table": np.array([[0], [1]], np.int32),
    "leaves": [1],
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "page_size": 4,
}
SIZES = ["num_heads", "num_kv_heads", "head_dim", "page_size", "max_new_tokens", "room"]
ARRAYS = ["parents", "segment_lens", "leaves", "leaf_lens"]


def plan(**changes):
    return mf.plan_tree_attention(**{**SMALL, **changes})


@pytest.mark.parametrize(
    "value",
    [8.5, float("nan"), float("inf"), True, "8", None, [8], 2**31, 2**63 - 1, 2**63, 10**400, -1],
    ids=lambda value: repr(value)[:24],
)
@pytest.mark.parametrize("name", SIZES)
def test_sizes(name, value):
    if name == "room" and value == 8.5:
        return
    with pytest.raises(ValueError, match=r"^expected .*(got|at least)") as raised:
        plan(**{name: value})
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("size", [8.0, 4.0])
def test_a_float_is_no_size(size):
    with pytest.raises(ValueError, match=r"^expected page_size >= 1 .* got \d\.0, 0$"):
        plan(page_size=size)


@pytest.mark.parametrize(
    "values",
    [
        [2**31],
        [2**63],
        [-(2**63) - 1],
        [2**200],
        np.array([2**64 - 1], np.uint64),
        np.array([True]),
        np.array([0.0]),
        ["0"],
        [None],
        [[0], [1, 2]],
        "0",
        0,
        None,
        torch.zeros(1),
        torch.zeros(1, dtype=torch.bool),
        torch.zeros(1, dtype=torch.int64, device="meta"),
    ],
    ids=lambda value: repr(value)[:24],
)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name, values):
    if name == "leaf_lens" and values is None:
        return
    alone = {"parents": [-1], "segment_lens": [3], "leaves": [0], "block_table": [[0]]}
    alone["block_table"] = np.zeros((1, 1), np.int32)
    with pytest.raises((ValueError, IndexError), match=r"^expected .*got"):
        plan(**{**alone, name: values})


@pytest.mark.parametrize("length", [-1, 2**31, 2**62])
def test_a_length_says_its_limits(length):
    message = rf"^expected segment_lens\[0\] >= 0 and below 2\^31, got {length}$"
    with pytest.raises(ValueError, match=message):
        plan(segment_lens=[length, 1])
    lens, leaves = np.array([length, 1]), np.array([1])
    with pytest.raises(ValueError, match=message):
        ReferencePlan(np.array([-1, 0]), lens, SMALL["block_table"], leaves, None, 4, 0)


@pytest.mark.parametrize(
    "table",
    [None, [[0], [1]], np.zeros((2, 1)), np.zeros((2, 1), np.int64), "table", [[0], [1, 2]]],
    ids=lambda value: repr(value)[:24],
)
def test_block_tables(table):
    with pytest.raises(ValueError, match=r"^expected block_table \[N, max_pages\] int32|as \[N"):
        plan(block_table=table)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", 3.5, [], "cpu cpu"])
def test_devices(device):
    with pytest.raises(ValueError, match=r"^expected device as PyTorch names it, got"):
        plan(device=device)


def test_the_most_new_tokens_that_fit():
    table = np.zeros((2, 1), np.int32)
    grown = plan(block_table=table, page_size=2**31 - 1, max_new_tokens=2**31 - 5)
    grown.advance()
    assert grown.path_lens.tolist() == [5]
    with pytest.raises(ValueError, match=r"^expected paths of at most 2\^31 - 1 tokens, got"):
        plan(block_table=table, page_size=2**31 - 1, max_new_tokens=2**31 - 1)


@pytest.mark.parametrize(
    "active",
    [
        [True, False],
        (True, False),
        np.array([True, False]),
        torch.tensor([True, False]),
        np.array([True, True, False])[::2],
        torch.tensor([True, True, False])[::2],
    ],
    ids=lambda value: repr(value)[:24],
)
def test_masks(active):
    two = {"parents": [-1, -1], "leaves": [0, 1], "max_new_tokens": 1}
    grown = plan(**two)
    grown.advance(active)
    assert grown.path_lens.tolist() == [4, 1]


@pytest.mark.parametrize(
    "active",
    [
        [True],
        [True] * 3,
        [1, 0],
        [True, None],
        [[True, False]],
        "no",
        1,
        True,
        [0.5, 0.5],
        np.array([1, 0]),
        torch.ones(2),
        torch.ones(2, dtype=torch.bool, device="meta"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_wrong_masks(active):
    two = {"parents": [-1, -1], "leaves": [0, 1], "max_new_tokens": 1}
    grown = plan(**two)
    with pytest.raises(ValueError, match=r"^expected active .*\[2\] bool.*, got"):
        grown.advance(active)
    assert grown.path_lens.tolist() == [3, 1]


@pytest.mark.parametrize("wrong", [None, [1], "plan", torch.zeros(24, dtype=torch.int32)])
def test_what_is_no_plan(wrong):
    q, cache = torch.zeros(1, 2, 16), torch.zeros(2, 1, 4, 16)
    with pytest.raises(ValueError, match=r"^expected a plan of plan_tree_attention, got"):
        mf.tree_attention(q, cache, cache, wrong)
