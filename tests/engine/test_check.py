"""What loading looks at beside the configuration: the layers' calls for attention, and one path."""

import contextlib
import shutil

import pytest
import torch
import transformers

from marco_fast import Engine, ModelError, PagedKVCache, SearchConfig, solve
from marco_fast.engine import engine
from marco_fast.engine.loading import check, load
from marco_fast.engine.loading.context import Limit
from marco_fast.engine.native_runner import NativeRunner
from marco_fast.engine.runner import TreeBatch
from marco_fast.engine.transformers_runner import (
    ATTENTION_NAME,
    PromptAttention,
    TransformersRunner,
    TreeAttention,
    set_attention,
)
from tests.support.architectures import save_tiny, tiny_config
from tests.support.models import CONFIGS, PlainForward, save_model

pytestmark = pytest.mark.usefixtures("one_thread")

OTHERS = "expected the logprobs of '.*' as transformers computes them, got others by up to "


@pytest.fixture(params=["native", "transformers"])
def runner(request, monkeypatch):
    if request.param == "transformers":
        monkeypatch.setattr(NativeRunner, "of", lambda model, cache: None)
    return {"native": NativeRunner, "transformers": TransformersRunner}[request.param]


def measured(monkeypatch) -> list[float]:
    """The distances of all checks from now on."""
    found: list[float] = []
    distance = check.distance

    def noted(errors, plain):
        found.append(distance(errors, plain))
        return found[-1]

    monkeypatch.setattr(check, "distance", noted)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_right_model_is_far_from_the_tolerance(kind, dtype, runner, tmp_path, monkeypatch):
    found = measured(monkeypatch)
    folder = save_model(kind, tmp_path)
    with Engine.from_pretrained(folder, dtype=dtype, kv_tokens=1024) as made:
        assert made.cache.used_pages == 0
    assert 0 < found[0] < check.TOLERANCE[getattr(torch, dtype)] / 5


@pytest.mark.parametrize("precision", ["medium", "high"])
def test_rounded_products_are_no_mismatch(precision, qwen2, runner):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        Engine.from_pretrained(qwen2).close()
    finally:
        torch.set_float32_matmul_precision(before)


def test_autocast_is_no_mismatch(qwen2, runner):
    with torch.autocast("cpu", torch.bfloat16):
        Engine.from_pretrained(qwen2).close()


@pytest.mark.parametrize("tokens", [16, 17, 32, 48, 95, 96, 512])
def test_a_small_cache_is_checked_by_a_shorter_path(tokens, qwen2, runner, monkeypatch):
    found = measured(monkeypatch)
    with Engine.from_pretrained(qwen2, kv_tokens=tokens) as made:
        assert made.cache.used_pages == 0
        assert isinstance(made.runner, runner)
    assert len(found) == 1


@pytest.mark.parametrize("context", [1, 2, 3, 16, 18])
def test_a_short_context_is_checked_by_a_shorter_path(context, runner, tmp_path, monkeypatch):
    found = measured(monkeypatch)
    folder = save_tiny(tiny_config("llama", max_position_embeddings=context), tmp_path)
    Engine.from_pretrained(folder).close()
    assert len(found) == 1


def test_pages_of_one_token(qwen2, runner):
    model, tokenizer = load.load_model(qwen2, "cpu", None)
    for tokens in (1, 2, 5, 6, 7):
        Engine(model, tokenizer, kv_tokens=tokens, page_size=1, check=tokens > 1).close()
        model, tokenizer = load.load_model(qwen2, "cpu", None)


def test_a_model_may_serve_two_engines(qwen2, monkeypatch):
    monkeypatch.setattr(NativeRunner, "of", lambda model, cache: None)
    model, tokenizer = load.load_model(qwen2, "cpu", None)
    for _ in range(2):
        with Engine(model, tokenizer, kv_tokens=512) as made:
            result = solve("abc", made, SearchConfig(expansions=2, step_tokens=4))
        assert PlainForward(qwen2).check(result, 2e-4) > 8


def test_the_first_search_is_that_of_an_engine_without_a_check(qwen2, runner):
    """With so few pages that segments are evicted, in the order of their ids."""
    trees = []
    for checked in (True, False):
        with Engine.from_pretrained(qwen2, kv_tokens=192, check=checked) as made:
            config = SearchConfig(expansions=12, step_tokens=8, rollout_tokens=16, parallel=4)
            result = solve("a question", made, config)
        trees.append((result.tree.token_ids, result.tree.logprobs, result.stats.kv_tokens_unique))
    assert trees[0] == trees[1]


def test_logits_that_are_no_numbers_are_a_mismatch(qwen2, runner, monkeypatch):
    empty = PagedKVCache.slots_ahead

    def poisoned(self, nodes, n):
        self.v[0].fill_(torch.nan)
        return empty(self, nodes, n)

    monkeypatch.setattr(PagedKVCache, "slots_ahead", poisoned)
    with pytest.raises(ModelError, match=OTHERS):
        Engine.from_pretrained(qwen2)


def test_a_slot_too_far_is_noticed(qwen2, runner, monkeypatch):
    slots = PagedKVCache.slots_ahead
    monkeypatch.setattr(PagedKVCache, "slots_ahead", lambda *given: slots(*given) + 1)
    with pytest.raises(ModelError, match=OTHERS):
        Engine.from_pretrained(qwen2)
    Engine.from_pretrained(qwen2, check=False).close()


@pytest.mark.parametrize("attention", [TreeAttention, PromptAttention])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_of_another_page_are_noticed(attention, dtype, qwen2, monkeypatch):
    monkeypatch.setattr(NativeRunner, "of", lambda model, cache: None)
    attend = attention.attend

    def wrong(self, layer, q, k, v, scale):
        return attend(self, layer, q, k.roll(1, dims=3), v, scale)

    monkeypatch.setattr(attention, "attend", wrong)
    with pytest.raises(ModelError, match=OTHERS):
        Engine.from_pretrained(qwen2, dtype=dtype)


def test_a_layer_that_is_left_out_is_noticed(qwen2, monkeypatch):
    add = NativeRunner._add_layer

    def all_but_the_last(self, layer, k_cache, v_cache):
        if k_cache is not self.cache.k[-1]:
            add(self, layer, k_cache, v_cache)

    monkeypatch.setattr(NativeRunner, "_add_layer", all_but_the_last)
    with pytest.raises(ModelError, match=OTHERS):
        Engine.from_pretrained(qwen2)


def test_another_batch_than_its_own_is_noticed(qwen2, runner, monkeypatch):
    sample = runner.sample

    def swapped(self, token_ids, positions, batch, options):
        slots = batch.slots.flip(0)
        return sample(self, token_ids, positions, TreeBatch(batch.plan, slots), options)

    monkeypatch.setattr(runner, "sample", swapped)
    with pytest.raises(ModelError, match=OTHERS):
        Engine.from_pretrained(qwen2)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("falcon_h1", "bfloat16"),
        ("jamba", "bfloat16"),
        ("jamba", "float32"),
        ("lfm2", "bfloat16"),
        ("lfm2", "float32"),
        ("minimax", "bfloat16"),
        ("nemotron_h", "bfloat16"),
        ("qwen3_next", "bfloat16"),
    ],
)
def test_a_hybrid_whose_configuration_hides_it_is_noticed(name, dtype, tmp_path, monkeypatch):
    kinds = {"layer_types": ["conv", "full_attention"]} if name == "lfm2" else {}
    folder = save_tiny(tiny_config(name, **kinds), tmp_path)
    for module in (engine, load):
        monkeypatch.setattr(module, "check_architecture", lambda config: None)
    with pytest.raises(ModelError, match="carry something from token to token beside attention"):
        Engine.from_pretrained(folder, dtype=dtype, kv_tokens=64, check=False)


@pytest.mark.parametrize("name", ["gptj", "falcon", "codegen", "gpt_neo", "openai-gpt", "rwkv"])
def test_attention_of_its_own_is_noticed(name, tmp_path, monkeypatch):
    rotary = {"rotary_dim": 8} if name in ("gptj", "codegen") else {}
    folder = save_tiny(tiny_config(name, **rotary), tmp_path)
    for module in (engine, load):
        monkeypatch.setattr(module, "check_architecture", lambda config: None)
    with pytest.raises(ModelError, match=f"'{name}', which does not use transformers' Attention"):
        Engine.from_pretrained(folder, check=False)


def test_weights_that_are_no_numbers_are_refused(qwen2, tmp_path):
    folder = shutil.copytree(qwen2, tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4] = torch.nan
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match="NaN or infinity"):
        Engine.from_pretrained(folder)


def test_what_a_forward_pass_raises_is_one_line(qwen2, monkeypatch):
    def broken(self, *args, **options):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(transformers.Qwen2ForCausalLM, "forward", broken)
    with pytest.raises(ModelError, match=r"'qwen2', whose forward pass raised: first line$"):
        Engine.from_pretrained(qwen2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"softcap": 50.0}, "'softcap' (50.0)"),
        ({"s_aux": torch.zeros(2)}, "'s_aux'"),
        ({"sinks": torch.zeros(2)}, "'sinks'"),
        ({"position_bias": torch.zeros(2)}, "'position_bias'"),
        ({"head_mask": torch.ones(2)}, "'head_mask'"),
        ({"block_indices": torch.ones(2)}, "'block_indices'"),
        ({"sliding_window": 511}, "'sliding_window' (511)"),
        ({"chunk_size": 8}, "'chunk_size' (8)"),
        ({"is_causal": False}, "'is_causal' (False)"),
        ({"dropout": 0.1}, "'dropout' (0.1)"),
        ({"never_heard_of": "x"}, "'never_heard_of'"),
        ({"softcap": None, "s_aux": None, "never_heard_of": None}, ""),
        ({"sliding_window": 512, "is_causal": True, "dropout": 0.0}, ""),
        ({"position_ids": torch.zeros(2), "output_attentions": False, "use_cache": False}, ""),
    ],
)
def test_attention_ignores_no_option(options, named, qwen2, monkeypatch):
    monkeypatch.setattr(NativeRunner, "of", lambda model, cache: None)
    with Engine.from_pretrained(qwen2) as made:
        attention = transformers.AttentionInterface()[ATTENTION_NAME]

        def asks(*given, **own):
            return attention(*given, **(own | options))

        monkeypatch.setitem(transformers.AttentionInterface._global_mapping, ATTENTION_NAME, asks)
        refused = pytest.raises(ModelError) if named else contextlib.nullcontext()
        with refused as caught:
            solve("abc", made, SearchConfig(expansions=1, step_tokens=2, rollout_tokens=0))
        if named:
            want = f"expected plain causal attention, got {named} of the model"
            assert str(caught.value) == want


def test_the_attention_is_given_back(qwen2):
    model, _ = load.load_model(qwen2, "cpu", None)
    with set_attention(model, ATTENTION_NAME):
        assert model.config._attn_implementation == ATTENTION_NAME
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["mistral", "cohere2", "llama4_text", "gemma3_text"])
def test_a_window_that_the_configuration_hides_is_found(name, tmp_path, monkeypatch):
    folder = save_tiny(tiny_config(name), tmp_path)
    monkeypatch.setattr(engine, "limit_of", lambda config: Limit(65, "the positions"))
    with pytest.warns(UserWarning, match="runs within the reach of its layers.* have 64 tokens"):
        made = Engine.from_pretrained(folder)
    with made:
        assert made.context == 64
        result = solve("abc", made, SearchConfig(expansions=1, step_tokens=32))
    assert PlainForward(folder).check(result, 2e-4) > 32
    with pytest.raises(ValueError, match=r"a context of 2 to 64 tokens .the reach of its layers"):
        Engine.from_pretrained(folder, context=65)
