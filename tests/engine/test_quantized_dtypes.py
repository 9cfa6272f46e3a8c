"""dtype="int8" and "int4": a safetensors model whose weights are quantised at loading."""

import pytest
import torch
import transformers

from marco_fast import Engine, ModelError, SearchConfig, solve
from marco_fast.engine.loading import load
from marco_fast.engine.native_runner import NativeRunner
from marco_fast.engine.quantized import QuantizedLinear, quantize
from marco_fast.ops.backends import built
from tests.support.gguf_files import CONFIGS, SIZES
from tests.support.models import PlainForward, save_model, save_tokenizer

pytestmark = pytest.mark.skipif(not built(), reason="only the C++ kernels take quantised weights")


def save(folder, kind, dtype=torch.bfloat16):
    torch.manual_seed(0)
    config = CONFIGS[kind](vocab_size=save_tokenizer(folder) + 8, **SIZES)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.to(dtype).save_pretrained(folder)
    return model.float()


@pytest.mark.parametrize(("bits", "kind"), [(8, "llama"), (4, "llama3"), (4, "qwen2")])
def test_a_search_has_the_scores_of_the_quantised_weights(tmp_path, bits, kind):
    model = save(tmp_path, kind)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            chosen = bits if "layers" in name else 8  # embedding and head always have 8 bits
            module.weight.data = quantize(module.weight.data, chosen).dequantize()
    with Engine.from_pretrained(tmp_path, dtype=f"int{bits}", kv_tokens=256) as engine:
        assert isinstance(engine.runner, NativeRunner)
        assert isinstance(engine.model.lm_head, QuantizedLinear)
        assert engine.dtype == torch.float32
        tied = engine.model.lm_head.weight is engine.model.model.embed_tokens.weight
        assert tied == engine.model.config.tie_word_embeddings
        config = SearchConfig(expansions=3, parallel=2, rollout_tokens=8, temperature=1.0)
        assert PlainForward(model).check(solve("Why?", engine, config), 2e-4) > 12


def test_other_models_and_other_devices_are_refused(tmp_path, monkeypatch):
    save_model("qwen2", tmp_path / "odd")
    with pytest.raises(ModelError, match=r"a multiple of 32 inputs, got .*112"):
        Engine.from_pretrained(tmp_path / "odd", dtype="int8")
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=300)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(ModelError, match=r"one of Llama, Mistral, .* 4 bits, got 'gpt2'"):
        Engine.from_pretrained(tmp_path, dtype="int4")
    monkeypatch.setattr(load, "quantizes", lambda: False)
    with pytest.raises(ValueError, match=r"without the C.. extension or on cpu, got 'int4'"):
        Engine.from_pretrained(tmp_path, dtype="int4")
