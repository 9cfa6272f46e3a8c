"""The package goes to other processes: Ray, joblib and Dask pickle functions that hold it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEND = """
import sys, {module} as pickler
import marco_fast as mf
def solved(question): return mf.SearchConfig(expansions=3).expansions, mf.solve
{check}
"""
CHECKS = {
    "the package": "assert pickler.loads(pickler.dumps(mf)) is mf",
    "a used package": "mf.solve, mf.Engine; assert pickler.loads(pickler.dumps(mf)) is mf",
    "a container": "assert pickler.loads(pickler.dumps({'mf': [mf]}))['mf'][0] is mf",
}
FUNCTION = """
sent = pickler.dumps(solved)
assert b"torch" not in sent
assert pickler.loads(sent)("q") == (3, mf.solve)
"""


def run(module: str, check: str) -> None:
    code = SEND.format(module=module, check=check)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["pickle", "cloudpickle"])
@pytest.mark.parametrize("name", CHECKS)
def test_the_package_pickles_by_its_name(module, name):
    run(module, CHECKS[name])


def test_a_function_that_holds_the_package_is_sent():
    run("cloudpickle", FUNCTION)
