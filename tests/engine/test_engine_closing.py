"""Engines closed, dropped, not made, copied; two engines on one model."""

import copy
import gc
import threading
import weakref

import numpy as np
import pytest
import torch
import transformers

from marco_fast import Engine, ModelError, SearchConfig, solve
from marco_fast.engine import engine as engine_module
from marco_fast.engine.native_runner import NativeRunner
from tests.support.searches import same_tree

CONFIG = SearchConfig(expansions=3, step_tokens=8, rollout_tokens=8, parallel=2)
CHAT = [{"role": "user", "content": "q"}]


@pytest.fixture
def engine(qwen2):
    with Engine.from_pretrained(qwen2, kv_tokens=2048) as made:
        yield made


@pytest.fixture
def loaded(qwen2):
    """A model and a tokenizer, for engines made of them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(qwen2, dtype=torch.float32)
    return model, transformers.AutoTokenizer.from_pretrained(qwen2)


def enter(engine: Engine) -> None:
    with engine:
        pass


USES = {
    "solve": lambda e: solve("q", e, CONFIG),
    "solve a list": lambda e: solve(["q", "r"], e, CONFIG),
    "sample": lambda e: e.sample([1], [0], None, seeds=[1], temperature=1.0),
    "prompt": lambda e: e.prompt_token_ids(CHAT, "q"),
    "with": enter,
    "model": lambda e: e.model,
    "cache": lambda e: e.cache,
    "runner": lambda e: e.runner,
    "lock": lambda e: e.lock.__enter__(),
}


@pytest.mark.parametrize("use", USES)
def test_a_closed_engine_says_so(engine, use):
    assert not engine.closed
    engine.close()
    engine.close()
    for _ in range(2):
        with pytest.raises(ValueError, match="expected an open engine, got a closed one"):
            USES[use](engine)
    assert engine.closed
    assert not engine.lock.locked()
    assert repr(engine).endswith(", closed)")


def test_closing_inside_and_behind_the_with_block_is_closing(qwen2):
    with Engine.from_pretrained(qwen2, kv_tokens=64) as engine:
        assert "closed" not in repr(engine)
        engine.close()
    engine.close()
    with pytest.raises(AttributeError, match="no attribute 'modell'"):
        _ = engine.modell


def test_closing_from_another_thread_waits_for_the_search(qwen2):
    engine = Engine.from_pretrained(qwen2, kv_tokens=2048)
    closing = [threading.Thread(target=engine.close) for _ in range(2)]

    def value(tokens, confidences, text) -> float:
        if closing[0].ident is None:
            for each in closing:
                each.start()
        return 0.5

    config = SearchConfig(expansions=6, step_tokens=8, rollout_tokens=8, value=value)
    result = solve("q", engine, config)
    for each in closing:
        each.join(10)
    assert (result.stop_reason, result.stats.expansions) == ("expansions", 6)
    assert engine.closed


def test_a_closed_engines_memory_is_given_back_at_once(qwen2):
    engine = Engine.from_pretrained(qwen2, kv_tokens=2048)
    result = solve("q", engine, CONFIG)
    held = [weakref.ref(each) for each in (engine.cache, engine.runner)]
    gc.collect()
    gc.disable()
    try:
        engine.close()
        assert [each() for each in held] == [None, None]
    finally:
        gc.enable()
    assert result.tree


def test_engines_that_are_dropped_without_a_close_leave_nothing(qwen2):
    held = []
    for _ in range(5):
        engine = Engine.from_pretrained(qwen2, kv_tokens=256)
        solve("q", engine, CONFIG)
        held += [weakref.ref(engine), weakref.ref(engine.cache), weakref.ref(engine.model)]
    del engine
    gc.collect()
    assert not any(each() for each in held)


@pytest.mark.parametrize("native", [True, False])
def test_a_second_engine_on_one_model_is_refused_and_the_first_works(loaded, monkeypatch, native):
    if not native:
        monkeypatch.setattr(NativeRunner, "of", lambda model, cache: None)
    ids = torch.tensor([[5, 6, 7]])
    plain = loaded[0](ids).logits
    with Engine(*loaded, kv_tokens=1024) as first:
        want = solve("q", first, CONFIG)
        with pytest.raises(ModelError, match="layers"):
            Engine(*loaded, kv_tokens=1024)
        with pytest.raises(ModelError, match="expected"):
            loaded[0].generate(ids, max_new_tokens=1)
        assert same_tree(solve("q", first, CONFIG), want)
    if native:
        for call in (lambda: loaded[0](ids), lambda: loaded[0].model(ids)):
            with pytest.raises(ModelError, match="whose layers moved into an Engine"):
                call()
        with pytest.raises(ModelError, match="whose layers moved into an Engine"):
            Engine(*loaded)
        return
    assert torch.equal(loaded[0](ids).logits, plain)
    with Engine(*loaded, kv_tokens=1024) as second:
        assert same_tree(solve("q", second, CONFIG), want)


def test_a_dropped_engine_gives_its_model_back(loaded, monkeypatch):
    monkeypatch.setattr(NativeRunner, "of", lambda model, cache: None)
    engine = Engine(*loaded, kv_tokens=1024)
    del engine
    gc.collect()
    assert loaded[0].config._attn_implementation == "sdpa"
    Engine(*loaded, kv_tokens=1024).close()


@pytest.mark.parametrize("part", ["token_bytes", "eos_ids_of", "NativeRunner", "PagedKVCache"])
def test_an_engine_that_cannot_be_made_leaves_the_model_as_it_was(loaded, monkeypatch, part):
    ids = torch.tensor([[5, 6, 7]])
    plain = loaded[0](ids).logits
    caches = []
    make = Engine._make_cache

    def recorded(*args):
        made = make(*args)
        caches.append(weakref.ref(made))
        return made

    monkeypatch.setattr(Engine, "_make_cache", recorded)

    def fail(*args, **options):
        raise RuntimeError("no luck")

    with monkeypatch.context() as patch:
        if part == "NativeRunner":
            patch.setattr(NativeRunner, "of", fail)
        else:
            patch.setattr(engine_module, part, fail)
        with pytest.raises(RuntimeError, match="no luck"):
            Engine(*loaded, kv_tokens=1024)
    gc.collect()
    assert not any(each() for each in caches)
    assert torch.equal(loaded[0](ids).logits, plain)
    with Engine(*loaded, kv_tokens=1024) as engine:
        assert solve("q", engine, CONFIG).stats.expansions == 3


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda e: e.__reduce_ex__(4)])
def test_an_engine_is_not_copied(engine, copied):
    with pytest.raises(TypeError, match="expected an Engine to stay where it is"):
        copied(engine)


@pytest.mark.parametrize("name", ["max_branches", "kv_tokens"])
@pytest.mark.parametrize("value", [True, 1.5, "64", -1, 0, float("nan"), [64]], ids=str)
def test_sizes_of_an_engine_are_integers(loaded, name, value):
    with pytest.raises(ValueError, match=f"expected {name} of at least 1"):
        Engine(*loaded, **{name: value})


def test_numpys_integers_are_sizes(loaded):
    with Engine(*loaded, max_branches=np.int64(3), kv_tokens=np.int32(64)) as engine:
        assert (engine.max_branches, engine.cache.num_pages) == (3, 4)
        assert type(engine.max_branches) is int
