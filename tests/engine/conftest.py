"""A small model in a folder, for all who need one."""

import shutil

import pytest

from tests.support.models import save_model


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    return save_model("qwen2", tmp_path_factory.mktemp("qwen2"))


@pytest.fixture
def folder(qwen2, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(qwen2, tmp_path / "model")
