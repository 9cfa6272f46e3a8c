"""NativeRunner: its products against float64, its numbers against transformers, its bits."""

import json

import numpy as np
import pytest
import torch
import transformers

import marco_fast as mf
from marco_fast import Engine, SearchConfig, solve
from marco_fast.engine.native_runner import NativeRunner
from marco_fast.engine.packing import PANEL, pack_bias, pack_gated, pack_linear
from marco_fast.engine.transformers_runner import TransformersRunner
from tests.support.hostile import against_guard
from tests.support.models import CONFIGS, PlainForward, save_model

_C = pytest.importorskip("marco_fast._C")
DTYPES = [torch.float32, torch.bfloat16]
QUESTION = "one question that is a little longer than a page of the cache"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: save_model(kind, tmp_path_factory.mktemp(kind)) for kind in CONFIGS}


def linear(a, panels, outputs, *, bias=None, result=None, gated=None, threads=1):
    if bias is not None:
        bias = against_guard(torch.nn.functional.pad(bias, (0, -len(bias) % PANEL)))
    packed = _C.PackedLinear(
        panels=panels.data_ptr(),
        bias=0 if bias is None else bias.data_ptr(),
        inputs=a.shape[1],
        outputs=outputs,
    )
    _C.linear(
        packed,
        (a.data_ptr(), *a.shape, a.shape[1], 1),
        dtype=int(a.dtype == torch.bfloat16),
        result=0 if result is None else result.data_ptr(),
        accumulate=result is not None and not result.isnan().any().item(),
        gated=0 if gated is None else gated.data_ptr(),
        threads=threads,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 12, 13, 25, 97, 100])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 1), (32, 32), (224, 100), (4200, 65)])
def test_products_are_within_rounding_of_float64(isa, inputs, outputs, rows, dtype):
    torch.manual_seed(rows)
    weight, a = torch.randn(outputs, inputs).to(dtype), torch.randn(rows, inputs).to(dtype)
    bias, before = torch.randn(outputs), torch.randn(rows, outputs)
    a, panels = against_guard(a), against_guard(pack_linear(weight))
    product = a.double() @ weight.double().T
    # A sum in one order, each step rounded up or down by half an ulp of the sum so far, which grows
    # as a random walk does: whatever the length, such errors stay below 4 of these (seen: 3.9).
    bound = 5 * 2.0**-24 * (a.double().abs() @ weight.double().abs().T) + 1e-6
    new = against_guard(torch.full((rows, outputs), torch.nan))
    linear(a, panels, outputs, bias=bias, result=new)
    assert ((new - product - bias).abs() <= bound).all()
    more = against_guard(before)
    linear(a, panels, outputs, result=more)
    assert ((more - product - before).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_gated_products(isa, rows, dtype):
    torch.manual_seed(rows)
    inputs, size = 64, 80
    gate, up = (6 * torch.randn(2, size, inputs) / inputs**0.5).to(dtype)
    a, biases = 2 * torch.randn(rows, inputs).to(dtype), torch.randn(2, size)
    gated = against_guard(torch.full((rows, size), torch.nan, dtype=dtype))
    linear(a, pack_gated(gate, up), 2 * size, bias=pack_bias(*biases), gated=gated)
    g, u = (a.double() @ w.double().T + b for w, b in zip((gate, up), biases, strict=True))
    want = g / (1 + (-g).exp()) * u
    assert (gated.double() - want).abs().max() <= want.abs().max() * 4 * torch.finfo(dtype).eps


def test_gates_far_out(isa):
    """e^-g leaves float32 on either side; NaN stays NaN."""
    values = torch.tensor([-1e30, -200.0, -88.0, -30.0, 0.0, 30.0, 88.0, 200.0, 1e30, torch.nan])
    a = torch.zeros(10, 16)
    a[:, 0], a[:, 1] = values, 1.0
    gate, up = torch.zeros(2, 16, 16)
    gate[:, 0] = up[:, 1] = 1.0
    gated = torch.empty(10, 16)
    linear(a, pack_gated(gate, up), 32, gated=gated)
    want = torch.nn.functional.silu(values.double())
    assert gated[:9, 3].double() == pytest.approx(want[:9].numpy(), rel=1e-6, abs=1e-33)
    assert gated[9].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_in_any_batch(isa, dtype):
    torch.manual_seed(1)
    weight, a = torch.randn(70, 4100).to(dtype), torch.randn(50, 4100).to(dtype)
    panels, whole = pack_linear(weight), torch.full((50, 70), torch.nan)
    linear(a, panels, 70, result=whole, threads=2)
    for begin, end in ((0, 1), (3, 16), (20, 50)):
        part = torch.full((end - begin, 70), torch.nan)
        linear(a[begin:end], panels, 70, result=part)
        assert torch.equal(part, whole[begin:end])


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_number_equals_a_plain_forward(isa, folders, kind):
    config = SearchConfig(expansions=6, step_tokens=8, rollout_tokens=12, parallel=3)
    with Engine.from_pretrained(folders[kind], max_branches=3) as engine:
        assert isinstance(engine.runner, NativeRunner)
        result = solve(QUESTION, engine, config)
    assert PlainForward(folders[kind]).check(result, 2e-4) > 50


def numbers(result) -> list:
    return json.loads(json.dumps(result.to_dict()["nodes"]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_scores_have_the_same_bits_in_any_batch(folders, kind, dtype):
    """A forest beside others, on two threads, in a cache of other pages, against alone."""
    config = SearchConfig(expansions=5, step_tokens=8, rollout_tokens=8, parallel=2)
    questions = [QUESTION, "another", "and one more, for company"]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with Engine.from_pretrained(folders[kind], dtype=dtype) as engine:
            together = solve(questions, engine, config)
        torch.set_num_threads(1)
        with Engine.from_pretrained(folders[kind], dtype=dtype, kv_tokens=512) as engine:
            alone = [solve(each, engine, config) for each in questions]
    finally:
        torch.set_num_threads(before)
    assert [numbers(each) for each in together] == [numbers(each) for each in alone]


def test_biases_everywhere(tmp_path):
    torch.manual_seed(3)
    folder = save_model("llama3", tmp_path)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.attention_bias = config.mlp_bias = True
    config.tie_word_embeddings = False
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    with Engine.from_pretrained(folder) as engine:
        assert isinstance(engine.runner, NativeRunner)
        result = solve(QUESTION, engine, SearchConfig(expansions=4, step_tokens=8))
    assert PlainForward(folder).check(result, 2e-4) > 50


@pytest.mark.parametrize(
    "change",
    [{"hidden_act": "gelu"}, {"intermediate_size": 72}, {"model_type": "unknown to C++"}],
    ids=str,
)
def test_what_the_native_runner_does_not_know_transformers_runs(tmp_path, change, monkeypatch):
    folder = save_model("llama3", tmp_path)
    if "model_type" in change:
        monkeypatch.setattr("marco_fast.engine.native_runner.KNOWN", ())
    else:
        config = transformers.AutoConfig.from_pretrained(folder)
        for key, value in change.items():
            setattr(config, key, value)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    with Engine.from_pretrained(folder) as engine:
        assert isinstance(engine.runner, TransformersRunner)
        result = solve(QUESTION, engine, SearchConfig(expansions=4, step_tokens=8))
    assert PlainForward(folder).check(result, 2e-4) > 50


@pytest.mark.parametrize("part", ["lm_head", "down_proj"])
def test_a_layer_that_was_replaced_is_not_taken_for_the_plain_one(folders, part):
    model = transformers.AutoModelForCausalLM.from_pretrained(folders["qwen3"])
    cache = mf.PagedKVCache(
        2, 4, num_kv_heads=2, head_dim=48, dtype=torch.float32, device=torch.device("cpu")
    )
    assert NativeRunner.of(model, cache) is not None
    model = transformers.AutoModelForCausalLM.from_pretrained(folders["qwen3"])
    if part == "lm_head":
        model.lm_head = torch.nn.Linear(64, model.config.vocab_size + 1, bias=False)
    else:
        model.model.layers[1].mlp.down_proj = torch.nn.Sequential(torch.nn.Linear(96, 64))
    assert NativeRunner.of(model, cache) is None


def test_float16_is_left_to_transformers(folders):
    with Engine.from_pretrained(folders["qwen2"], dtype="float16") as engine:
        assert isinstance(engine.runner, TransformersRunner)


def test_the_weights_are_not_kept_twice(folders):
    with Engine.from_pretrained(folders["llama3"]) as engine:
        names = {name for name, each in engine.model.named_parameters() if each.numel()}
    assert all("norm" in name or "embed" in name for name in names)


@pytest.mark.parametrize("name", ["token_ids", "positions", "slots"])
@pytest.mark.parametrize("wrong", [-2, 10**9])
def test_a_step_refuses_what_is_out_of_range_and_writes_nothing(folders, name, wrong):
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=64) as engine:
        node = engine.cache.add_root()
        slots = engine.cache.extend(node, 2)
        plan = engine_plan(engine, node)
        given = {"token_ids": torch.tensor([5, 6]), "positions": torch.arange(2), "slots": slots}
        given[name] = torch.tensor([0, wrong])
        for cache in engine.cache.k:
            cache.zero_()
        before = [cache.clone() for cache in engine.cache.k]
        slots_given = given.pop("slots")
        with pytest.raises(IndexError, match=name):
            engine.runner.step(*given.values(), slots_given, plan)
        assert all(map(torch.equal, before, engine.cache.k))
        with pytest.raises(ValueError, match="rows"):
            engine.runner.step(torch.tensor([5]), torch.arange(1), slots[:1], plan)


def engine_plan(engine, node):
    nodes = np.array([node])
    return mf.plan_tree_attention(
        [-1], engine.cache.lengths(nodes), engine.cache.block_table(nodes), [0, 0],
        leaf_lens=[1, 2], num_heads=engine.num_heads, num_kv_heads=engine.num_kv_heads,
        head_dim=engine.head_dim, page_size=engine.cache.page_size,
    )  # fmt: skip


def test_the_rope_table_grows_with_the_positions(folders):
    with Engine.from_pretrained(folders["llama3"]) as engine:
        runner = engine.runner
        runner._rotate_up_to(3)
        short = runner.cos[:3].clone()
        runner._rotate_up_to(400)
        assert 400 <= len(runner.cos) <= 512
        assert torch.equal(runner.cos[:3], short)


def test_without_the_extension_there_is_none(folders, monkeypatch):
    monkeypatch.setattr("marco_fast.engine.native_runner.built", lambda: False)
    with Engine.from_pretrained(folders["qwen2"]) as engine:
        assert isinstance(engine.runner, TransformersRunner)
