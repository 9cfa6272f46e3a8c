"""A folder in which small GGUF files are written."""

import pytest

from tests.support.gguf_files import GgufFolder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return GgufFolder(tmp_path_factory.mktemp("gguf"))
