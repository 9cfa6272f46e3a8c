"""The Triton lm_head_records in the interpreter: merged records give the result of the whole."""

import pytest
import torch

from marco_fast import ops
from tests.support.confidence import as_product, random_product
from tests.support.draws import keyed, options_of
from tests.support.hostile import logits_of
from tests.support.shards import Cut, assert_same_result


@pytest.mark.parametrize("name", ["plain", "cool", "top_p", "top_k 100", "greedy"])
@pytest.mark.usefixtures("in_interpreter")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_triton(name):
    hidden, weight = random_product(3, 40, 200, torch.bfloat16)
    sizes, keys = (70, 1, 129), keyed(3)
    got = Cut(hidden, weight, sizes).merged(keys, "triton", **options_of(name))
    want = ops.lm_head_confidence(hidden, weight, **options_of(name), **keys)
    assert_same_result(got, want)


@pytest.mark.parametrize("kind", ["nan", "inf", "ties"])
@pytest.mark.usefixtures("in_interpreter")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_triton_with_anything(kind):
    for row, logits in enumerate(logits_of(kind, 3, 200).split(1)):
        hidden, weight = as_product(logits)
        got = Cut(hidden, weight, (70, 1, 129)).merged(keyed(1, row), "triton", top_p=0.9)
        want = ops.lm_head_confidence(hidden, weight, top_p=0.9, **keyed(1, row))
        assert_same_result(got, want)
