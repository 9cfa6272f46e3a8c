"""The torch.library operators as graphs see them: fakes, autograd, inference mode, registration."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

import marco_fast as mf
from tests.support.operator_cases import (
    ATTENTION_CASES,
    DRAWN,
    OPS,
    TOPK_CASES,
    appended,
    attended,
    draws,
    forest_of,
    logits_of,
    paths,
    same,
)

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("fresh_compiler", "one_thread")


@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_fakes_are_like_the_results(kind):
    """Shape, dtype, strides and the kind of tensor, for every operator and case."""
    mode = FakeTensorMode()

    def disguised(tree):
        if kind == "meta":
            return torch.utils._pytree.tree_map_only(torch.Tensor, lambda x: x.to("meta"), tree)
        return torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, tree)

    calls = [("topk_confidence", case) for case in TOPK_CASES.values()]
    calls += [(name, case) for name, *case in DRAWN]
    calls += [("tree_attention", case) for case in ATTENTION_CASES.values()]
    for name, (args, kwargs) in calls:
        got = getattr(OPS, name)(*disguised(args), **disguised(kwargs))
        want = getattr(OPS, name)(*args, **kwargs)
        for one, other in zip(got, want, strict=True):
            assert one.device.type == (kind if kind == "meta" else "cpu")
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert one.stride() == other.stride()
    assert OPS.append_kv(*disguised(appended(4))) is None


def test_results_never_require_grad():
    lg = logits_of(3).requires_grad_()
    for result in (
        *OPS.topk_confidence(lg, torch.tensor([1, 2, 3])),
        *OPS.sample_confidence(lg, **draws(3)),
        *OPS.lm_head_confidence(lg, lg.detach(), **draws(3), top_k=2),
    ):
        assert not result.requires_grad
        assert result.grad_fn is None
    q, *rest = attended(forest_of(1))
    out, lse = OPS.tree_attention(q.clone().requires_grad_(), *rest)
    assert not out.requires_grad
    assert not lse.requires_grad
    confidence = torch.compile(OPS.topk_confidence, fullgraph=True, backend="aot_eager")
    assert not confidence(lg, torch.tensor([1, 2, 3]))[0].requires_grad


def test_autograd_sees_what_is_written():
    k, v, k_cache, v_cache, slots = appended(3)
    for saved in (k_cache, v_cache):
        factor = torch.ones_like(saved).requires_grad_()
        product = factor * saved
        OPS.append_kv(k, v, k_cache, v_cache, slots)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()
    path = paths(3)
    before = path["path_sums"]._version, path["path_counts"]._version
    OPS.sample_confidence(logits_of(3), **draws(3), **path)
    assert path["path_sums"]._version > before[0]
    assert path["path_counts"]._version > before[1]


def test_inference_mode():
    with torch.inference_mode():
        k, v, k_cache, v_cache, slots = appended(3)
        OPS.append_kv(k, v, k_cache, v_cache, slots)
        assert k_cache.any()
        same(
            OPS.sample_confidence(logits_of(3), **draws(3), **paths(3)),
            mf.sample_confidence(logits_of(3), **draws(3)),
        )


def test_operators_are_registered_by_their_own_import():
    code = """
import sys, torch, marco_fast, marco_fast.ops
print("marco_fast.torch_library" in sys.modules, hasattr(torch.ops.marco_fast, "append_kv"))
import marco_fast.torch_library
print(hasattr(torch.ops.marco_fast, "append_kv"))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.split() == ["False", "False", "True"], run.stderr
