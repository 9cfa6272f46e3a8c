"""How much memory there is for the KV cache."""

import sys

import pytest
import torch

from marco_fast.engine.loading import memory
from marco_fast.engine.loading.memory import memory_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("groups", "files", "limits"),
    [
        ("0::/\n", {"memory.max": "1000\n"}, [1000]),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "20", "memory.max": "9"}, [20, 9]),
        ("3:cpu:/x\n5:memory,hugetlb:/x\n", {"memory/x/memory.limit_in_bytes": "70"}, [70]),
        ("0::/gone\n", {"memory.max": "rubbish"}, []),
        ("0::/../../outside\n", {"memory.max": "5000"}, [5000]),
        (None, {}, []),
    ],
)  # fmt: skip
def test_a_containers_limits_count(tmp_path, groups, files, limits):
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert list(memory._limits(tmp_path)) == limits


def test_the_least_counts(monkeypatch):
    whole = memory_of(CPU)
    assert 2**28 < whole < 2**50
    monkeypatch.setattr(memory, "_limits", lambda: [2**63 - 1, 12345])
    assert memory_of(CPU) == 12345


def test_a_system_that_nobody_knows_is_taken_for_a_small_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert memory_of(CPU) <= memory.UNKNOWN_MEMORY
