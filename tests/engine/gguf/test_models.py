"""GGUF files of every architecture and type: the scores of the numbers that are in them."""

import shutil

import gguf
import numpy as np
import pytest
import torch

from marco_fast import Engine, SearchConfig, solve
from marco_fast.engine.gguf import blocks, file
from marco_fast.engine.gguf import model as loading
from marco_fast.engine.gguf.blocks import BLOCKS
from marco_fast.engine.gguf.config import config_of
from marco_fast.engine.gguf.header import read_gguf
from marco_fast.engine.loading.context import limit_of
from marco_fast.engine.native_runner import NativeRunner
from marco_fast.engine.quantized import QuantizedEmbedding, QuantizedLinear
from marco_fast.ops.backends import built
from tests.support.gguf_files import CONFIGS
from tests.support.models import PlainForward

SEARCH = SearchConfig(expansions=3, parallel=2, step_tokens=6, rollout_tokens=8, temperature=1.0)
CPU = torch.device("cpu")
CASES = [(kind, "Q4_K") for kind in CONFIGS] + [("llama", weights) for weights in BLOCKS]


def check(path, reference, atol=2e-4, **options) -> Engine:
    engine = Engine.from_pretrained(path, kv_tokens=512, **options)
    result = solve("What is 6 * 7?", engine, SEARCH)
    assert PlainForward(reference).check(result, atol) > 12
    return engine


@pytest.mark.parametrize(("kind", "weights"), CASES)
def test_a_search_has_the_scores_of_the_numbers_in_the_file(files, kind, weights):
    path, reference = files.write(f"{kind}-{weights}.gguf", kind, weights)
    with check(path, reference) as engine:
        assert isinstance(engine.runner, NativeRunner) or not built()
        quantized = BLOCKS[weights].unpack is not None and built()
        assert isinstance(engine.model.lm_head, QuantizedLinear) == quantized
        assert isinstance(engine.model.model.embed_tokens, QuantizedEmbedding) == quantized
        assert engine.dtype == torch.float32
        assert engine.context == 512


def test_a_tied_head_and_its_embedding_are_the_same_weights(files):
    path, _ = files.write("tied.gguf", "qwen3", "Q6_K")
    model, _ = loading.load_gguf(path, torch.device("cpu"), torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    path, _ = files.write("untied.gguf", "llama", "Q6_K")
    model, _ = loading.load_gguf(path, torch.device("cpu"), torch.float32)
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_matrices_are_decoded_some_rows_at_a_time(files, monkeypatch):
    path, _ = files.write("pieces.gguf", "qwen2", "Q4_1")
    whole, _ = loading.load_gguf(path, CPU, torch.float32)
    asked = []

    def decode(kind, raw, shape):
        asked.append(shape)
        return blocks.decode(kind, raw, shape)

    monkeypatch.setattr(file, "decode", decode)
    monkeypatch.setattr(file, "PIECE", 96 * 256 + 1)
    for quantized in (True, False):
        monkeypatch.setattr(loading, "quantizes", lambda quantized=quantized: quantized)
        pieces, _ = loading.load_gguf(path, CPU, torch.float32)
        for name, module in whole.named_modules():
            if isinstance(module, QuantizedLinear | QuantizedEmbedding):
                made = pieces.get_submodule(name).weight
                made = made.dequantize() if quantized and built() else made
                assert torch.equal(made, module.weight.dequantize())
    assert max(shape[0] for shape in asked if len(shape) == 2) == 96


@pytest.mark.parametrize("kind", ["llama3", "qwen2"])
def test_without_quantised_kernels_it_has_the_numbers_themselves(files, kind, monkeypatch):
    monkeypatch.setattr(loading, "quantizes", lambda: False)
    path, reference = files.write(f"{kind}.gguf", kind, "Q5_0")
    model, _ = loading.load_gguf(path, torch.device("cpu"), torch.float32)
    assert [*model.state_dict()] == [*reference.state_dict()]
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    model, _ = loading.load_gguf(path, torch.device("cpu"), torch.float16)
    assert {each.dtype for each in model.parameters()} == {torch.float16}


def test_activations_may_be_bfloat16(files):
    path, reference = files.write("bfloat16.gguf", "qwen2", "Q4_0")
    with check(path, reference, atol=0.1, dtype="bfloat16") as engine:
        assert engine.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("weights", "dtype"),
    [("F32", torch.float32), ("Q8_0", torch.bfloat16), ("F16", torch.bfloat16)],
)
def test_elsewhere_than_on_a_cpu_the_dtype_is_chosen_by_the_files_own(files, weights, dtype):
    path, _ = files.write(f"auto-{weights}.gguf", "qwen2", weights)
    assert loading.load_gguf(path, torch.device("cpu"), "auto")[0].dtype == dtype


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_file_keeps_the_quantisation_that_it_has(files, dtype):
    path, _ = files.write("own.gguf")
    with pytest.raises(ValueError, match=r"one of \['float32'.*own.gguf', whose weights stay"):
        Engine.from_pretrained(path, dtype=dtype)


def extra(writer):
    writer.add_array("x.nested", [[1, 2], [3]])
    writer.add_array("x.texts", ["a", "漢字"])
    writer.add_float64("x.number", 0.25)


def last_to_first(writer):
    writer.tensors[0] = dict(reversed(list(writer.tensors[0].items())))


def half_norms(writer):
    for name, each in writer.tensors[0].items():
        if "norm" in name:
            each.tensor = np.round(each.tensor, 1).astype(np.float16)
            each.dtype, each.nbytes = gguf.GGMLQuantizationType.F16, each.tensor.nbytes


def wider(writer):
    for name in ("block_count", "context_length", "embedding_length"):
        writer.kv_data[0][f"qwen2.{name}"].type = gguf.GGUFValueType.UINT64
    writer.kv_data[0]["qwen2.attention.layer_norm_rms_epsilon"].type = gguf.GGUFValueType.FLOAT64


@pytest.mark.parametrize(
    "change", [extra, last_to_first, half_norms, wider, lambda w: w.add_custom_alignment(64)]
)
def test_a_file_may_be_written_in_other_ways(files, change):
    path, reference = files.write("ünï ç 漢.GGUF", "qwen2", "Q5_1", change)
    if change is half_norms:
        for name, each in reference.named_parameters():
            if "norm" in name:
                each.data = (each.data * 10).round().div(10).half().float()
    check(path, reference).close()


def test_a_folder_of_one_file_is_that_file(files, tmp_path):
    path, _ = files.write("one.gguf")
    shutil.copy(path, tmp_path / "model.GGUF")
    Engine.from_pretrained(tmp_path, kv_tokens=64).close()
    shutil.copy(path, tmp_path / "named-otherwise")
    Engine.from_pretrained(tmp_path / "named-otherwise", kv_tokens=64).close()


def test_the_parts_of_a_split_file_are_one_model(files, tmp_path):
    path, reference = files.write("whole.gguf", "llama", "Q8_0", parts=tmp_path)
    assert not path.exists()
    check(tmp_path / "whole-00001-of-00002.gguf", reference).close()
    check(tmp_path, reference).close()


def test_a_window_bounds_the_context(files):
    path, reference = files.write(
        "window.gguf", "mistral", "Q8_0", lambda writer: writer.add_sliding_window(96)
    )
    with pytest.warns(UserWarning, match="a path may have 96 tokens"):
        engine = Engine.from_pretrained(path)
    with engine:
        assert type(engine.model).__name__ == "MistralForCausalLM"
        assert engine.context == 96
        result = solve("Why?", engine, SEARCH)
        assert PlainForward(reference).check(result, 2e-4)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_a_window_bounds_the_context_whatever_the_architecture(files, kind):
    def narrow(writer):
        writer.add_sliding_window(48)

    path, _ = files.write(f"narrow-{kind}.gguf", kind, "Q8_0", narrow)
    config = config_of(read_gguf(path))
    assert config.sliding_window == 48
    assert limit_of(config).tokens == 48
    assert {*getattr(config, "layer_types", ["sliding_attention"])} == {"sliding_attention"}


def test_the_token_that_ends_a_chat_ends_a_reply(files):
    def change(writer):
        writer.add_eot_token_id(1)
        writer.add_bool("tokenizer.ggml.add_bos_token", False)

    path, _ = files.write("ends.gguf", "qwen2", "Q8_0", change)
    with Engine.from_pretrained(path, kv_tokens=64) as engine:
        # EOS, EOT, and <|endoftext|>, which ends a text wherever it is a special token.
        assert engine.eos_ids == {0, 1, 2}
        assert set(engine.model.generation_config.eos_token_id) == {0, 1, 2}
