"""Tensors without memory of their own are refused by every operation, and never read."""

import json
import subprocess
import sys

import pytest

from tests.support.unreadable import CALLS, TRANSFORMS, UNREADABLE


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """What each case said; one process runs them all, since a missing check kills it."""
    program = [sys.executable, "-W", "ignore", "-m", "tests.support.unreadable"]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=300)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{done.stderr}\nthe last case before: {lines[-1:]}"
    return dict(json.loads(line) for line in lines)


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize("kind", UNREADABLE)
def test_each_argument_is_refused(outcomes, kind, operation):
    for argument in CALLS[operation][1]:
        got = outcomes[f"{operation} {argument} {kind}"]
        assert got.startswith("ValueError: expected"), f"{argument}: {got}"


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_inside_a_transform_each_argument_is_refused_or_read_without_a_graph(outcomes, transform):
    found = {case: got for case, got in outcomes.items() if case.endswith(f"in {transform}")}
    assert found
    for case, got in found.items():
        assert got.startswith("ValueError: expected") or (
            transform == "grad" and got == "a result"
        ), f"{case}: {got}"
