"""RoPE as a GGUF file describes it: transformers turns positions by the same angles."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from marco_fast import ModelError
from marco_fast.engine.gguf.file import GgufFile, GgufTensor
from marco_fast.engine.gguf.rope import FREQUENCIES, rope_parameters

HEAD, CONTEXT = 64, 4096


def parameters(factors=None, folder: Path | None = None, **fields):
    tensors = {}
    if factors is not None:
        path = folder / "factors"
        np.asarray(factors, np.float32).tofile(path)
        tensors[FREQUENCIES] = GgufTensor(FREQUENCIES, (len(factors),), "F32", path, 0)
    named = {f"llama.rope.{name.replace('__', '.')}": value for name, value in fields.items()}
    return rope_parameters(GgufFile(Path("x"), named, tensors), "llama", HEAD, CONTEXT)


def frequencies(found) -> torch.Tensor:
    config = transformers.LlamaConfig(
        hidden_size=HEAD, num_attention_heads=1, max_position_embeddings=CONTEXT,
        rope_parameters=found,
    )  # fmt: skip
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    return rotary.inv_freq


@pytest.mark.parametrize(
    ("factor", "low", "original", "theta"),
    [(8.0, 1.0, 8192, 5e5), (32.0, 1.0, 8192, 5e5), (4.0, 1.0, 300, 1e4), (2.0, 1.0, 7, 1e6)],
)
def test_llama_3s_scaling_is_known_by_its_factors(tmp_path, factor, low, original, theta):
    wanted = frequencies(
        {
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }
    )
    plain = frequencies({"rope_type": "default", "rope_theta": theta})
    found = parameters((plain / wanted).tolist(), tmp_path, freq_base=theta)
    assert found["rope_type"] == "llama3"
    assert found["factor"] == pytest.approx(factor)
    assert torch.allclose(frequencies(found), wanted, rtol=3e-7, atol=0)


def test_equal_factors_are_linear_and_ones_are_none(tmp_path):
    assert parameters([1.0] * 32, tmp_path)["rope_type"] == "default"
    found = parameters([4.0] * 32, tmp_path)
    assert (found["rope_type"], found["factor"]) == ("linear", 4.0)


@pytest.mark.parametrize(
    ("factors", "match"),
    [
        ([1.0, 3.0] * 16, "as Llama 3 scales RoPE"),
        ([0.5] * 32, "of 1 and more"),
        ([float("nan")] * 32, "of 1 and more"),
        ([float("inf")] * 32, "of 1 and more"),
        ([8.0] * 31, r"of the shape \(32,\)"),
    ],
)
def test_other_factors_are_refused(tmp_path, factors, match):
    with pytest.raises(ModelError, match=match):
        parameters(factors, tmp_path)


def test_linear_and_yarn_are_those_of_transformers():
    assert parameters() == {"rope_theta": 10000.0, "rope_type": "default"}
    found = parameters(scaling__type="linear", scaling__factor=4.0)
    assert torch.equal(frequencies(found), frequencies(parameters()) / 4)
    assert parameters(scale_linear=4.0) == found
    ours = parameters(
        scaling__type="yarn", scaling__factor=4.0, scaling__original_context_length=1024
    )
    theirs = {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
        "original_max_position_embeddings": 1024,
    }  # fmt: skip
    assert torch.equal(frequencies(ours), frequencies(dict(theirs)))
    rotary = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"]
    config = transformers.LlamaConfig(
        hidden_size=HEAD, num_attention_heads=1, rope_parameters=theirs
    )
    assert ours["attention_factor"] == pytest.approx(rotary(config, torch.device("cpu"))[1])


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"dimension_count": 32}, "turns whole heads of 64.* got 32"),
        ({"freq_base": 0.0}, "freq_base above 1"),
        ({"freq_base": float("nan")}, "a number as llama.rope.freq_base .*nan"),
        ({"scaling__type": "longrope"}, "by linear or yarn.* got 'longrope'"),
        ({"scaling__type": "linear", "scaling__factor": -2.0}, "a positive .*factor"),
        ({"scaling__type": "yarn", "scaling__yarn_log_multiplier": 0.1}, "log_multiplier of 0"),
        ({"scaling__type": "yarn", "scaling__yarn_ext_factor": 0.5}, "ext_factor of 1"),
    ],
)
def test_what_transformers_would_turn_otherwise_is_refused(fields, match):
    with pytest.raises(ModelError, match=match):
        parameters(**fields)
