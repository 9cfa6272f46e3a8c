"""Whatever a program has set in PyTorch, before loading or in mid-search, the tree is the same."""

import contextlib
import dataclasses

import pytest
import torch

from marco_fast import Engine, SearchConfig, solve
from marco_fast.engine.native_runner import NativeRunner
from tests.support.models import save_model
from tests.support.settings import SETTINGS, TRANSFORMS

QUESTION = "one question that is a little longer than a page of the cache"
CONFIG = SearchConfig(
    expansions=3, step_tokens=6, rollout_tokens=6, parallel=3, temperature=1.0, seed=1
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model("qwen2", tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(params=[True, False], ids=["native", "transformers"])
def native(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(NativeRunner, "of", lambda model, cache: None)
    return request.param


def rows(engine, value="path"):
    result = solve(QUESTION, engine, dataclasses.replace(CONFIG, value=value))
    assert result.stop_reason == "expansions"
    return result.tree.rows()


def load(folder):
    return Engine.from_pretrained(folder, kv_tokens=512)


@pytest.fixture
def want(folder, native, usual):
    if native not in usual:
        with load(folder) as engine:
            usual[native] = rows(engine)
    return usual[native]


@pytest.fixture(scope="module")
def usual():
    return {}


@pytest.mark.parametrize("setting", SETTINGS)
def test_set_before_loading(folder, want, setting):
    with SETTINGS[setting](), load(folder) as engine:
        assert rows(engine) == want


@pytest.mark.parametrize("setting", SETTINGS)
def test_set_while_loading_alone(folder, want, setting):
    with SETTINGS[setting]():
        engine = load(folder)
    with engine:
        assert rows(engine) == want


@pytest.mark.parametrize("setting", SETTINGS)
def test_set_in_mid_search_by_a_value_function(folder, native, want, setting):
    with load(folder) as engine, contextlib.ExitStack() as stack:
        calls = []

        def value(tokens, confidences, text):
            if not calls:
                if native:  # as where a path grows beyond the table
                    engine.runner.cos = engine.runner.cos[:0]
                stack.enter_context(SETTINGS[setting]())
            calls.append(text)
            return sum(confidences) / len(confidences)

        assert rows(engine, value) == want
        assert calls


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_search_inside_a_transform(folder, want, transform):
    found = []

    def inside(x):
        found.append(rows(engine))
        return x.sum()

    with load(folder) as engine:
        TRANSFORMS[transform](inside)
    assert found == [want]


def test_a_callback_sees_its_own_settings(folder, want):
    seen = []

    def value(tokens, confidences, text):
        seen.append((torch.empty(1).device.type, torch.is_autocast_enabled("cpu")))
        return sum(confidences) / len(confidences)

    with load(folder) as engine, torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        assert rows(engine, value) == want
    assert set(seen) == {("meta", True)}


def test_a_models_own_code_sees_the_usual_settings(folder, monkeypatch):
    monkeypatch.setattr(NativeRunner, "of", lambda model, cache: None)
    seen = []

    def look(module, inputs):
        seen.append((torch.get_default_dtype(), torch.empty(1).device.type))
        seen.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))

    settings = ("default dtype bfloat16", "products in bfloat16", "autocast float16")
    with load(folder) as engine, contextlib.ExitStack() as stack:
        engine.model.model.norm.register_forward_pre_hook(look)
        for each in (*settings, "with device meta"):
            stack.enter_context(SETTINGS[each]())
        rows(engine)
        assert torch.get_default_dtype() == torch.bfloat16
    assert set(seen) == {(torch.float32, "cpu"), ("highest", False)}


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_changed_in_mid_search(folder, native, want, threads):
    if not native:
        pytest.skip("the library's products have other bits with other threads")
    before = torch.get_num_threads()
    try:
        with load(folder) as engine:

            def value(tokens, confidences, text):
                torch.set_num_threads(threads)
                return sum(confidences) / len(confidences)

            assert rows(engine, value) == want
    finally:
        torch.set_num_threads(before)
