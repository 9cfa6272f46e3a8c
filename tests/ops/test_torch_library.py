"""The torch.library operators: the operations' own results, errors and arguments, and opcheck."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.library import opcheck

import marco_fast as mf
from marco_fast.torch_library import packed_plan
from tests.support.operator_cases import (
    APPEND_CASES,
    ATTENTION_CASES,
    LM_HEAD_CASES,
    NAMES,
    OPS,
    SAMPLE_CASES,
    TOPK_CASES,
    appended,
    attended,
    draws,
    forest_of,
    logits_of,
    options,
    paths,
    same,
)

ROOT = Path(__file__).parents[2]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# The operations that draw, case by case.
DRAWN = [
    (name, *case)
    for name, cases in (("sample_confidence", SAMPLE_CASES), ("lm_head_confidence", LM_HEAD_CASES))
    for case in cases.values()
]

pytestmark = pytest.mark.usefixtures("fresh_compiler", "one_thread")


@pytest.mark.parametrize("case", TOPK_CASES)
def test_opcheck_topk_confidence(case):
    args, kwargs = TOPK_CASES[case]
    opcheck(OPS.topk_confidence.default, args, kwargs)


@pytest.mark.parametrize(("name", "args", "kwargs"), DRAWN)
def test_opcheck_draws(name, args, kwargs):
    opcheck(getattr(OPS, name).default, args, kwargs)


@pytest.mark.parametrize("case", APPEND_CASES)
def test_opcheck_append_kv(case):
    opcheck(OPS.append_kv.default, tuple(APPEND_CASES[case]))


@pytest.mark.parametrize("case", ATTENTION_CASES)
def test_opcheck_tree_attention(case):
    args, kwargs = ATTENTION_CASES[case]
    opcheck(OPS.tree_attention.default, args, kwargs)


def test_opcheck_tree_attention_wants_grad():
    q, *rest = attended(forest_of(5))
    opcheck(OPS.tree_attention.default, (q.clone().requires_grad_(), *rest))


@pytest.mark.usefixtures("in_interpreter")
def test_opcheck_tree_attention_for_a_device_in_the_interpreter():
    forest = forest_of(6, 2, nodes=3, heads=2, kv_heads=1)
    q, k_cache, v_cache, *_ = attended(forest)
    items = forest.plan().items(torch.device("cpu"))
    options = {"launch": [*items.sizes], "backend": "triton"}
    opcheck(OPS.tree_attention.default, (q, k_cache, v_cache, items.packed), options)


@pytest.mark.parametrize("case", TOPK_CASES)
def test_topk_confidence_is_the_operation(case):
    args, kwargs = TOPK_CASES[case]
    got = OPS.topk_confidence(*args, **kwargs)
    assert type(got) is tuple
    same(got, mf.topk_confidence(*args, **kwargs))


@pytest.mark.parametrize(("name", "args", "kwargs"), DRAWN)
def test_a_draw_is_the_operation(name, args, kwargs):
    mine, theirs = [
        {name: value.clone() if torch.is_tensor(value) else value for name, value in kwargs.items()}
        for _ in range(2)
    ]
    got = getattr(OPS, name)(*args, **mine)
    assert type(got) is tuple
    same(got, getattr(mf, name)(*args, **theirs))
    for path in ("path_sums", "path_counts"):
        if path in kwargs:
            assert torch.equal(mine[path], theirs[path])
            assert len(args[0]) == 0 or not torch.equal(mine[path], kwargs[path])


@pytest.mark.parametrize("case", APPEND_CASES)
def test_append_kv_is_the_operation(case):
    k, v, k_cache, v_cache, slots = APPEND_CASES[case]
    mine, theirs = ([k_cache.clone(), v_cache.clone()] for _ in range(2))
    assert OPS.append_kv(k, v, *mine, slots) is None
    mf.append_kv(k, v, *theirs, slots)
    same(mine, theirs)
    assert len(k) == 0 or not torch.equal(mine[0], k_cache)


@pytest.mark.parametrize("seed", range(12))
def test_tree_attention_is_the_operation(seed):
    partial, dtype = seed % 2 == 0, DTYPES[seed % 3]
    forest = forest_of(seed, 3 + seed, nodes=2 + 3 * seed, dtype=dtype, partial=partial)
    plan = forest.plan()
    caches = forest.caches()
    for scale in (None, 0.5):
        got = OPS.tree_attention(forest.q, *caches, packed_plan(plan), scale=scale)
        assert type(got) is tuple
        want = mf.tree_attention(forest.q, *caches, plan, scale=scale, return_lse=True)
        same(got, want)


@pytest.mark.parametrize("name", NAMES)
def test_schema_is_the_signature(name):
    """The arguments, their kinds and defaults of the public call, and the fields of its result."""
    schema = getattr(OPS, name).default._schema
    public = dict(inspect.signature(getattr(mf, name)).parameters)
    for dropped in ("return_lse", "out", "workspace"):
        public.pop(dropped, None)
    mine = {each.name: each for each in schema.arguments}
    assert [each for each in mine if each != "launch"] == [*public]
    for each, argument in public.items():
        assert mine[each].kwarg_only == (argument.kind is inspect.Parameter.KEYWORD_ONLY)
        assert mine[each].has_default_value() == (argument.default is not inspect.Parameter.empty)
        if each not in options(0) or name == "topk_confidence":
            assert mine[each].default_value in (argument.default, None)
    fields = {
        "topk_confidence": mf.TopKConfidence,
        "sample_confidence": mf.SampledTokens,
        "lm_head_confidence": mf.SampledTokens,
    }
    if name in fields:
        assert tuple(each.name for each in schema.returns) == fields[name]._fields
    written = {each.name for each in schema.arguments if each.is_write}
    wanted = {
        "sample_confidence": {"path_sums", "path_counts"},
        "lm_head_confidence": {"path_sums", "path_counts"},
        "append_kv": {"k_cache", "v_cache"},
    }
    assert written == wanted.get(name, set())


def bad_calls():
    """A name, and arguments that the operation of that name refuses."""
    lg, ids = logits_of(3), torch.tensor([1, 2, 3])
    yield "topk_confidence", (lg[0], ids), {}
    yield "topk_confidence", (lg.double(), ids), {}
    yield "topk_confidence", (lg.T, ids), {}
    yield "topk_confidence", (lg, ids[:2]), {}
    yield "topk_confidence", (lg, ids.float()), {}
    yield "topk_confidence", (lg, ids + 38), {}
    yield "topk_confidence", (lg, ids - 2), {}
    yield "topk_confidence", (lg, ids), {"top_k": 41}
    yield "topk_confidence", (lg, ids), {"top_k": 0}
    yield "topk_confidence", (lg, ids), {"temperature": 0.0}
    yield "topk_confidence", (lg, ids), {"denominator": "all"}
    yield "topk_confidence", (lg, ids), {"backend": "none"}
    good = {**draws(3), **options(3), **paths(3)}
    for change in [
        {"temperature": torch.full((3,), -1.0)},
        {"temperature": torch.ones(2)},
        {"top_p": torch.zeros(3)},
        {"min_p": torch.full((3,), 1.5)},
        {"sample_top_k": torch.ones(3)},
        {"seeds": torch.ones(3, dtype=torch.int32)},
        {"positions": torch.arange(4)},
        {"path_sums": torch.arange(6)[::2]},
        {"path_counts": torch.arange(3)},
        {"active": torch.arange(3)},
        {"score": "cooked"},
    ]:
        yield "sample_confidence", (lg,), good | change
        yield "lm_head_confidence", LM_HEAD_CASES["draws alone"][0], good | change
    hidden, weight = LM_HEAD_CASES["draws alone"][0]
    yield "lm_head_confidence", (hidden, weight.half()), good
    yield "lm_head_confidence", (hidden[:, :5], weight), good
    yield "lm_head_confidence", (hidden, weight), good | {"bias": torch.zeros(3)}
    yield "lm_head_confidence", (hidden, weight), good | {"round_logits": torch.int64}
    k, v, k_cache, v_cache, slots = appended(4)
    yield "append_kv", (k, v[:3], k_cache, v_cache, slots), {}
    yield "append_kv", (k, v.half(), k_cache, v_cache, slots), {}
    yield "append_kv", (k, v, k_cache[:4], v_cache, slots), {}
    yield "append_kv", (k, v, k_cache, v_cache, slots.int()), {}
    yield "append_kv", (k, v, k_cache, v_cache, slots + 40), {}


@pytest.mark.parametrize(("name", "args", "kwargs"), [*bad_calls()])
def test_bad_arguments_raise_the_same(name, args, kwargs):
    with pytest.raises((ValueError, IndexError)) as public:
        getattr(mf, name)(*args, **kwargs)
    with pytest.raises(type(public.value), match=f"^{re.escape(str(public.value))}$"):
        getattr(OPS, name)(*args, **kwargs)


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v: (q[:4], k, v),
        lambda q, k, v: (q[:, :4], k, v),
        lambda q, k, v: (q.half(), k, v),
        lambda q, k, v: (q, k[:, :, :4], v[:, :, :4]),
        lambda q, k, v: (q, k[:1], v[:1]),
        lambda q, k, v: (q, k, v[:, :1]),
        lambda q, k, v: (q.repeat_interleave(2, 2), k, v),
    ],
)
def test_tree_attention_not_as_planned_raises_the_same(change):
    forest = forest_of(8)
    tensors, plan = change(forest.q, *forest.caches()), forest.plan()
    with pytest.raises((ValueError, IndexError)) as public:
        mf.tree_attention(*tensors, plan)
    with pytest.raises(type(public.value), match=f"^{re.escape(str(public.value))}$"):
        OPS.tree_attention(*tensors, packed_plan(plan))


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
