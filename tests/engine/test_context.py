"""How long a path may be: the model's positions, its windows, its RoPE, the caller's word."""

import json
import warnings
from pathlib import Path

import pytest
import torch
import transformers

from marco_fast import Engine, ModelError, SearchConfig, solve
from marco_fast.cli import main
from marco_fast.engine import engine as engine_module
from marco_fast.engine import native_runner
from marco_fast.engine.loading import attention_shape
from marco_fast.engine.loading.attention_shape import Apart
from marco_fast.engine.loading.context import Limit, limit_of
from marco_fast.engine.native_runner import NativeRunner
from marco_fast.engine.transformers_runner import Mask
from tests.support.models import COMMON, PlainForward, save_model, save_tokenizer
from tests.support.searches import ATOL

WINDOW = 64
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
SCALED = {"rope_theta": 1e4, "original_max_position_embeddings": WINDOW}
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
LONGROPE = {"rope_type": "longrope", **SCALED, **FACTORS}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
# Models of which a path beyond 64 tokens would be computed otherwise than the engine does.
LIMITED = {
    "mistral": (transformers.MistralConfig, {"sliding_window": WINDOW}, "sliding window"),
    "qwen2": (
        transformers.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        "sliding window",
    ),
    "gemma3_text": (
        transformers.Gemma3TextConfig,
        {"sliding_window": WINDOW, "head_dim": 16, "num_hidden_layers": 6},
        "sliding window",
    ),
    "phi3": (
        transformers.Phi3Config,
        {
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": WINDOW,
            "pad_token_id": 0,
        },
        "RoPE is not scaled",
    ),
    "llama": (
        transformers.LlamaConfig,
        {"rope_parameters": DYNAMIC, "max_position_embeddings": WINDOW},
        "RoPE is not scaled",
    ),
}


def save_limited(kind: str, folder: Path) -> Path:
    make, fields, _ = LIMITED[kind]
    size = save_tokenizer(folder)
    config = make(vocab_size=size, intermediate_size=96, **COMMON | SMALL | fields)
    config.eos_token_id = 2
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=LIMITED)
def limited(request, tmp_path_factory):
    return request.param, save_limited(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def unlimited(tmp_path_factory):
    return save_model("qwen2", tmp_path_factory.mktemp("qwen2"))


def test_a_model_runs_within_its_window_to_the_last_token_of_it(limited):
    kind, folder = limited
    with pytest.warns(UserWarning, match=f"runs within .*{LIMITED[kind][2]}.* have 64 tokens"):
        engine = Engine.from_pretrained(folder)
    config = SearchConfig(expansions=3, step_tokens=16, rollout_tokens=200)
    with engine:
        assert engine.context == WINDOW
        result = solve("What is it?", engine, config)
    tree = result.tree
    longest = max(len(tree.path_token_ids(node)) for node in range(len(tree)))
    assert longest + len(result.prompt_token_ids) == WINDOW
    assert PlainForward(folder).check(result, ATOL) > 30


@pytest.mark.filterwarnings("ignore:.*runs within")
def test_beyond_the_window_the_scores_would_be_wrong(limited, monkeypatch):
    """Otherwise the test above could not see a limit that is too large."""
    for module in (engine_module, native_runner):
        monkeypatch.setattr(module, "limit_of", lambda config: Limit(4 * WINDOW, "anything"))
    monkeypatch.setattr(Apart, "note_reach", lambda self, tokens: None)
    with pytest.raises((AssertionError, ModelError)):
        search_and_check(limited[1])


def search_and_check(folder: Path) -> None:
    config = SearchConfig(expansions=3, step_tokens=16, rollout_tokens=120)
    with Engine.from_pretrained(folder) as engine:
        result = solve("What is it?", engine, config)
    assert result.error is None, result.error
    PlainForward(folder).check(result, ATOL)


@pytest.mark.parametrize("native", [True, False])
def test_a_path_ends_alone_at_the_callers_context(unlimited, monkeypatch, native):
    if not native:
        monkeypatch.setattr(NativeRunner, "of", lambda model, cache: None)
    config = SearchConfig(expansions=4, step_tokens=16, rollout_tokens=200, temperature=1.0)
    with Engine.from_pretrained(unlimited, context=80) as engine:
        assert engine.context == 80
        assert engine.cache.num_pages * engine.cache.page_size == 64 * 80
        result = solve("What is it?", engine, config)
        assert engine.cache.used_pages == 0
    tree = result.tree
    ends = [len(tree.path_token_ids(node)) for node in range(len(tree)) if tree.terminal[node]]
    assert max(ends) + len(result.prompt_token_ids) == 80
    assert result.stats.expansions == 4
    assert result.error is None
    PlainForward(unlimited).check(result, ATOL)


@pytest.mark.parametrize("context", [1, 0, -5, 513, 2**40])
def test_a_context_that_the_model_does_not_have_is_refused(unlimited, context):
    says = "a context of 2 to 512 .*positions.*" if context > 1 else "context of at least 2"
    with pytest.raises(ValueError, match=f"expected {says}, got {context}$"):
        Engine.from_pretrained(unlimited, context=context)


def test_a_context_beyond_the_window_is_refused_and_names_it(tmp_path):
    folder = save_limited("mistral", tmp_path)
    with pytest.raises(ValueError, match=r"a context of 2 to 64 tokens .its sliding window of"):
        Engine.from_pretrained(folder, context=65)


@pytest.mark.parametrize("options", [{"context": 64}, {"context": 20}, {"kv_tokens": 64}])
def test_a_caller_who_asks_for_no_more_than_the_window_is_not_warned(tmp_path, options):
    folder = save_limited("mistral", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Engine.from_pretrained(folder, **options) as engine:
            assert engine.context == min(options.values())


def test_a_window_that_no_layer_uses_limits_nothing(unlimited):
    config = transformers.Qwen2Config(
        use_sliding_window=True, sliding_window=8, layer_types=["full_attention"] * 32
    )
    assert limit_of(config).tokens == config.max_position_embeddings
    config = transformers.MistralConfig(sliding_window=8)
    config.use_sliding_window = False
    assert limit_of(config).tokens == config.max_position_embeddings


def test_context_and_kv_tokens_are_apart(unlimited):
    with Engine.from_pretrained(unlimited, context=100, kv_tokens=1000) as engine:
        assert (engine.context, engine.cache.num_pages) == (100, 63)
    with Engine.from_pretrained(unlimited, kv_tokens=100) as engine:
        assert (engine.context, engine.cache.num_pages) == (100, 7)
    with Engine.from_pretrained(unlimited, max_branches=1) as engine:
        assert (engine.context, engine.cache.num_pages) == (512, 32)


def test_the_command_line_takes_a_context(unlimited, capsys):
    arguments = ["solve", "Why?", "--model", str(unlimited), "--context", "64", "--json"]
    main([*arguments, "--expansions", "1", "--rollout-tokens", "300", "--quiet"])
    tree = json.loads(capsys.readouterr().out)
    assert sum(len(each["token_ids"]) for each in tree["nodes"]) <= 64
    assert main([*arguments[:4], "--context", "9999"]) == 2
    assert "expected a context of 2 to 512 tokens" in capsys.readouterr().err


def test_a_question_longer_than_the_context_is_refused(unlimited):
    question = "a question of some length, longer than two pages of tokens"
    with (
        Engine.from_pretrained(unlimited, context=32) as engine,
        pytest.raises(ValueError, match="fewer than 32 tokens with its prompt"),
    ):
        solve(question, engine)


@pytest.mark.parametrize("positions", [-1, 0, 2**31, 2**63])
def test_positions_that_no_path_can_have_are_refused(tmp_path, positions):
    folder = save_model("llama3", tmp_path)
    set_field(folder, max_position_embeddings=positions)
    with pytest.raises(
        ModelError, match=rf"^expected a model of a known .* has {positions} as max"
    ):
        Engine.from_pretrained(folder)


def test_a_window_without_a_path_is_refused(tmp_path):
    folder = save_model("mistral", tmp_path)
    set_field(folder, sliding_window=0)
    with pytest.raises(ModelError, match=r"^expected a path of 1 token at least, got"):
        Engine.from_pretrained(folder)


def test_a_context_beyond_any_memory_is_looked_at_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(attention_shape, "BLOCK", 16)
    folder = save_model("mistral", tmp_path)
    set_field(folder, sliding_window=40, max_position_embeddings=10**9)
    with Engine.from_pretrained(folder, context=40) as engine:
        result = solve("abc", engine, SearchConfig(expansions=2, step_tokens=8, rollout_tokens=0))
    assert PlainForward(folder).check(result, ATOL) > 0
    apart = Apart(10**9, torch.device("cpu"))
    apart.note_mask(Mask(lambda b, h, q, k: (k <= q) & (q - k < 40)))
    assert (apart.reach, apart.causal) == (40, True)


def set_field(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
