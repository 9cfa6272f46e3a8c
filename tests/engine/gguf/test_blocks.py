"""GGUF's blocks: the numbers that they stand for are those of the gguf package, bit for bit."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from marco_fast.engine.gguf.blocks import BLOCKS, OTHER_TYPES, decode
from marco_fast.engine.quantized import QuantizedWeight

TYPES = gguf.GGMLQuantizationType
QUANTIZED = [kind for kind, block in BLOCKS.items() if block.unpack]


def test_every_type_has_its_number_and_the_size_of_its_blocks():
    for kind in TYPES:
        if kind.name in BLOCKS:
            block = BLOCKS[kind.name]
            assert block.type == kind
            assert (block.inputs, block.size) == gguf.GGML_QUANT_SIZES[kind]
        else:
            assert OTHER_TYPES[kind] == kind.name


@pytest.mark.parametrize("kind", QUANTIZED)
@given(data=st.data(), outputs=st.integers(1, 3), blocks=st.integers(1, 2))
def test_any_bytes_stand_for_the_numbers_of_the_gguf_package(kind, data, outputs, blocks):
    block = BLOCKS[kind]
    size = outputs * blocks * block.size
    drawn = data.draw(st.binary(min_size=1, max_size=64)) + bytes(range(251))
    raw = np.frombuffer((drawn * (size // len(drawn) + 1))[:size], np.uint8)
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(raw.reshape(outputs, -1), TYPES[kind])
    weight = decode(kind, torch.from_numpy(raw.copy()), (outputs, blocks * block.inputs))
    assert isinstance(weight, QuantizedWeight)
    assert weight.codes.max().item() < 1 << block.bits
    got = weight.dequantize().numpy()
    assert np.array_equal(got, want, equal_nan=True)
    there = ~np.isnan(want)
    assert np.array_equal(np.signbit(got[there]), np.signbit(want[there]))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_plain_numbers_are_read_as_they_are(kind):
    numbers = torch.tensor([[0.5, -2.0, 3.25], [0.0, 1.5, -1.0]], dtype=BLOCKS[kind].dtype)
    raw = numbers.view(torch.uint8).flatten()
    assert torch.equal(decode(kind, raw, (2, 3)), numbers)
