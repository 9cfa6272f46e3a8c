"""Memory that a model's loading gives back."""

import sys
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from marco_fast.engine.loading import shedding
from marco_fast.engine.loading.memory import affordable_tokens, weights_size
from marco_fast.engine.loading.shedding import shed_memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(1 << 20, dtype=torch.float32)}, path)
    return path


def mapped(path) -> int:
    """Bytes of a mapped file that are in memory."""
    inside, total = False, 0
    with open("/proc/self/smaps") as smaps:
        for line in smaps:
            if "-" in line.partition(" ")[0]:
                inside = line.rstrip().endswith(str(path))
            elif inside and line.startswith("Rss:"):
                total += int(line.split()[1]) << 10
    return total


@linux
def test_pages_of_a_file_that_was_read_are_given_back_and_come_again(file):
    with shed_memory():
        tensors = load_file(file)
        assert tensors["a"].sum() > 0
        before = mapped(file)
    if not before:
        pytest.skip("safetensors did not map the file")
    assert mapped(file) < before / 2
    assert torch.equal(tensors["a"], torch.arange(1 << 20, dtype=torch.float32))


@linux
def test_what_was_written_to_stays(file):
    with shed_memory():
        tensors = load_file(file)
        tensors["a"][5] = -1.0
    assert tensors["a"][5] == -1.0
    older = load_file(file)
    older["a"].sum()
    before = mapped(file)
    with shed_memory():
        pass
    assert mapped(file) == before  # a mapping of somebody else


def test_no_thread_stays_behind(file):
    before = threading.active_count()
    with pytest.raises(RuntimeError), shed_memory():
        raise RuntimeError
    assert threading.active_count() == before


def test_another_system_goes_without(monkeypatch):
    monkeypatch.setattr(shedding.sys, "platform", "darwin")
    with shed_memory():
        assert threading.active_count() == threading.active_count()


def test_a_cache_gets_a_quarter_of_what_the_weights_leave(monkeypatch):
    module = "marco_fast.engine.loading.memory."
    monkeypatch.setattr(module + "_machine", lambda: 16 << 30)
    monkeypatch.setattr(module + "_limits", lambda: [])
    monkeypatch.setattr(module + "_available", lambda: 12 << 30)
    cpu = torch.device("cpu")
    assert affordable_tokens(cpu, 1 << 30, 1 << 20) == 3 << 10  # 12 GiB are free
    assert affordable_tokens(cpu, 14 << 30, 1 << 20) == 512  # 2 GiB beside weights still in a file
    assert affordable_tokens(cpu, 4 << 30, 1 << 20, loaded=False) == 2 << 10
    assert affordable_tokens(cpu, 99 << 30, 1 << 20) == 0


def test_weights_are_counted_once():
    layer = torch.nn.Linear(4, 4, bias=False)
    assert weights_size(torch.nn.Sequential(layer, layer)) == 64
