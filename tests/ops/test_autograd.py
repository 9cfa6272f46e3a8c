"""No result of an operation is part of a graph; autograd is told of what is written in place."""

import pytest
import torch

import marco_fast as mf
from tests.support.settings import SETTINGS

BACKENDS = ["cpu", "torch"]
KEYS = {"seeds": torch.arange(2), "positions": torch.arange(2)}


def attention():
    plan = mf.plan_tree_attention(
        [-1], [3], torch.zeros(1, 1, dtype=torch.int32), [0], num_heads=2, num_kv_heads=1,
        head_dim=16, page_size=4,
    )  # fmt: skip
    return torch.randn(1, 2, 16), torch.randn(2, 1, 4, 16), torch.randn(2, 1, 4, 16), plan


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_result_requires_grad(backend):
    logits, weight = torch.randn(2, 9, requires_grad=True), torch.randn(9, 9, requires_grad=True)
    results = [*mf.topk_confidence(logits, torch.arange(2), backend=backend)]
    results += mf.sample_confidence(logits, **KEYS, backend=backend)
    results += mf.lm_head_confidence(logits, weight, **KEYS, bias=weight[0], backend=backend)
    records = mf.lm_head_records(logits, weight, 0, 9, backend=backend)
    results += records[:6]
    results += mf.merge_records([records], lambda _, rows: (logits @ weight.T)[rows], **KEYS)
    q, k_cache, v_cache, plan = attention()
    inputs = (each.requires_grad_() for each in (q, k_cache, v_cache))
    results += mf.tree_attention(*inputs, plan, return_lse=True, backend=backend)
    assert not any(each.requires_grad for each in results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_temperature_that_requires_grad_is_a_temperature(backend):
    logits, warm = torch.randn(2, 9), torch.tensor([0.5, 2.0])
    want = mf.sample_confidence(logits, **KEYS, temperature=warm, backend=backend)
    got = mf.sample_confidence(logits, **KEYS, temperature=warm.requires_grad_(), backend=backend)
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cache", [0, 1])
def test_a_backward_pass_notices_that_append_kv_wrote(cache, backend):
    k = torch.ones(1, 1, 16)
    caches = [torch.zeros(2, 1, 4, 16), torch.zeros(2, 1, 4, 16)]
    weight = torch.ones(16, requires_grad=True)
    loss = (caches[cache] * weight).sum()
    mf.append_kv(k, k, *caches, torch.tensor([0]), backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_version_of_what_is_written_rises(backend):
    sums, counts = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int32)
    q, k_cache, v_cache, plan = attention()
    out, part = torch.zeros_like(q), k_cache[:1]
    written = [sums, counts, out, k_cache, part]
    before = [each._version for each in written]
    paths = {"path_sums": sums, "path_counts": counts}
    mf.sample_confidence(torch.randn(2, 9), **KEYS, **paths, backend=backend)
    filled = mf.tree_attention(q, k_cache, v_cache, plan, out=out, backend=backend)
    assert filled is out
    mf.append_kv(q[:, :1], q[:, :1], part, v_cache[:1], torch.tensor([0]), backend=backend)
    assert all(each._version > old for each, old in zip(written, before, strict=True))
    read = [q._version]
    assert read == [0]
    before = sums._version
    records = mf.lm_head_records(torch.ones(2, 4), torch.ones(9, 4), 0, 9, backend=backend)
    mf.merge_records([records], lambda _, rows: torch.full((len(rows), 9), 4.0), **KEYS, **paths)
    assert sums._version > before


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_of_inference_mode_are_written_outside_of_it(backend):
    with torch.inference_mode():
        caches, sums = torch.zeros(2, 2, 1, 4, 16), torch.zeros(2, dtype=torch.int64)
        q, k_cache, v_cache, plan = attention()
        out = torch.zeros_like(q)
    k = torch.ones(1, 1, 16)
    mf.append_kv(k, k, caches[0], caches[1], torch.tensor([0]), backend=backend)
    assert caches[:, 0, 0, 0].eq(1).all()
    drawn = mf.sample_confidence(torch.zeros(2, 9), **KEYS, path_sums=sums, backend=backend)
    assert (sums > 0).all()
    assert not drawn.confidence.is_inference()
    mf.tree_attention(q, k_cache, v_cache, plan, out=out, backend=backend)
    assert out.any()


@pytest.mark.parametrize("setting", ["inference mode", "no grad", "grad"])
def test_what_is_written_in_a_mode_of_autograd_is_told_too(setting):
    k, caches = torch.ones(1, 1, 16), torch.zeros(2, 2, 1, 4, 16).unbind()
    before = caches[0]._version
    with SETTINGS[setting]():
        mf.append_kv(k, k, *caches, torch.tensor([0]))
    assert caches[0]._version > before
