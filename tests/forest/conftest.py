"""Engines and plain forwards of tiny random models and of nano-marco, for searches."""

import pytest

from marco_fast import Engine
from tests.support.models import CONFIGS, PlainForward, save_model
from tests.support.searches import NANO


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return {kind: save_model(kind, tmp_path_factory.mktemp(kind)) for kind in CONFIGS}


@pytest.fixture(scope="session")
def plain(folders):
    made: dict[str, PlainForward] = {}

    def get(name: str) -> PlainForward:
        if name not in made:
            made[name] = PlainForward(folders.get(name, NANO))
        return made[name]

    return get


@pytest.fixture(scope="module")
def nano():
    with Engine.from_pretrained("nano-marco") as engine:
        yield engine


@pytest.fixture
def tiny(folders):
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=4096) as engine:
        yield engine
