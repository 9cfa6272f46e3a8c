"""marco-fast info: how a model would run, before it is loaded; and what loading tells."""

import json
import re

import pytest

from marco_fast import Engine
from marco_fast.cli import main
from marco_fast.commands.console import stages
from marco_fast.engine.loading.outlook import outlook
from marco_fast.engine.native_runner import NativeRunner
from tests.support.models import CONFIGS, save_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: save_model(kind, tmp_path_factory.mktemp(kind)) for kind in CONFIGS}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", None])
def test_what_is_said_of_a_model_is_what_the_engine_does(folders, kind, dtype):
    seen = outlook(folders[kind], dtype=dtype, kv_tokens=256)
    with Engine.from_pretrained(folders[kind], dtype=dtype, kv_tokens=256) as engine:
        native = isinstance(engine.runner, NativeRunner)
        assert seen.runner == ("C++" if native else "transformers")
        assert seen.dtype == str(engine.dtype).removeprefix("torch.")
        assert seen.context == engine.context
        cache = engine.cache
        token = 2 * len(cache.k) * cache.k[0][0, :, 0].nbytes
        assert seen.kv_token_bytes == token
        assert seen.kv_tokens == cache.num_pages * cache.page_size


def test_the_default_cache_is_the_engines(folders):
    with Engine.from_pretrained(folders["qwen2"], max_branches=2) as engine:
        cache = engine.cache
        seen = outlook(folders["qwen2"], max_branches=2)
        assert seen.kv_tokens == cache.num_pages * cache.page_size == 2 * engine.context


def test_a_model_is_described_without_its_weights(folders, capfd, monkeypatch):
    monkeypatch.setattr(Engine, "from_pretrained", None)
    assert main(["info", "--model", str(folders["llama3"])]) == 0
    said = " ".join(capfd.readouterr().out.split())
    for words in (
        r"llama \(LlamaForCausalLM\), 2 layers, [\d,]+ parameters",
        r"in C\+\+ on \w+, in float32: weights of",
        r"512 tokens \(the positions of the model\)",
        r"\d+ x F32",
        "chat template the model's own",
        "replies what each reply shows",
    ):
        assert re.search(words, said), words


def test_rounded_activations_are_told_of_where_the_engine_takes_them(folders, capfd):
    model = ["info", "--model", str(folders["llama3"]), "--activations", "int8"]
    assert main([*model, "--dtype", "int8"]) == 0
    assert "in float32 with activations in int8: int8 weights" in capfd.readouterr().out
    assert main(model) == 2
    said = capfd.readouterr().err
    with pytest.raises(ValueError, match="expected quantised weights") as refused:
        Engine.from_pretrained(folders["llama3"], activations="int8", kv_tokens=64)
    assert str(refused.value) in said


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_quantised_weights_are_smaller(folders, bits):
    whole, small = outlook(folders["llama3"]), outlook(folders["llama3"], dtype=bits)
    assert small.weights_bytes < whole.weights_bytes / 2
    assert small.dtype == "float32"


def test_activations_of_8_bits_need_weights_that_are(folders, capfd):
    options = ["info", "--model", str(folders["llama3"]), "--activations", "int8"]
    assert main([*options, "--dtype", "int4"]) == 0
    assert main(options) == 2
    assert "expected quantised weights on a CPU for activations='int8'" in capfd.readouterr().err


def test_json_has_all_of_it(folders, capfd):
    assert main(["info", "--model", str(folders["qwen3"]), "--json", "--context", "100"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["context"], told["limit"], told["reply"]) == (100, 512, "auto")
    assert told["needed"] == told["weights_bytes"] + told["kv_tokens"] * told["kv_token_bytes"]


@pytest.mark.parametrize(
    ("model", "message"),
    [("nowhere", "expected nano-marco"), ("mamba", "no attention at all"), ("cut", "loadable")],
)
def test_what_would_be_refused_is_one_line_and_exit_code_2(
    folders, model, message, capfd, tmp_path
):
    if model != "nowhere":
        folder = save_model("qwen2", tmp_path / model)
        if model == "mamba":
            (folder / "config.json").write_text('{"model_type": "mamba", "vocab_size": 328}')
        else:
            weights = folder / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:1000])
        model = str(folder)
    assert main(["info", "--model", model]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert re.fullmatch(f"marco-fast info: error: .*{message}.*\n", captured.err)


def test_the_bundled_models_are_named(capfd):
    assert main(["info", "--json"]) == 0
    assert {"nano-marco", "nano-llama"} == {*json.loads(capfd.readouterr().out)["bundled models"]}


def test_the_stages_of_loading_take_each_others_place(monkeypatch):
    seen = []
    view = "marco_fast.forest.live.StderrView.show"
    monkeypatch.setattr(view, lambda self, make: seen.append(str(make())))
    with stages("m"):
        Engine.from_pretrained("nano-marco", kv_tokens=64).close()
    Engine.from_pretrained("nano-marco", kv_tokens=64).close()
    assert seen == [
        "loading m: ...",
        "loading m: reading the weights",
        "loading m: computing a short path by transformers",
        "loading m: packing the weights",
        "loading m: computing the same path by the engine",
    ]
