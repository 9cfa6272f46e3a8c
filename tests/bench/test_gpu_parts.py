"""The parts of the GPU run: how they time, what they time, and what tools look at."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from bench.gpu.machine import CaptureFailed, Machine
from bench.gpu.parts.step import Layers, Shape
from tests.bench.fake_gpu import L2_BYTES, FakeGpu, FakeGraph
from tests.support.compiling import compiling_python

ROOT = Path(__file__).parents[2]


def joined(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a layer of transformers as Layers takes them."""
    attention, mlp = layer.self_attn, layer.mlp
    attention.q_proj.bias.normal_()
    qkv = [getattr(attention, f"{name}_proj") for name in "qkv"]
    return {
        "norm1": layer.input_layernorm.weight, "norm2": layer.post_attention_layernorm.weight,
        "qkv": torch.cat([each.weight for each in qkv]),
        "bias": torch.cat([each.bias for each in qkv]), "o": attention.o_proj.weight,
        "gate_up": torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
        "down": mlp.down_proj.weight,
    }  # fmt: skip


def test_the_step_that_is_timed_is_the_model(in_interpreter):
    """Layers, in which QKV and gate with up are joined, against transformers."""
    import transformers

    import marco_fast as mf

    shape = Shape(2, 64, 96, 4, 2, 16, 128)
    config = transformers.Qwen2Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=128, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(config).eval().requires_grad_(False)
    base = model.model
    weights = [joined(layer) for layer in base.layers]
    cos, sin = (each[0] for each in base.rotary_emb(torch.zeros(1), torch.arange(64)[None]))
    layers = Layers(
        shape, weights, base.embed_tokens.weight, base.norm.weight, cos, sin,
        eps=config.rms_norm_eps, backend=None,
    )  # fmt: skip
    tokens = torch.randint(0, 128, (9,))
    caches = [torch.zeros(2, 1, 2, 16, 16) for _ in weights]
    for t, token in enumerate(tokens):
        plan = mf.plan_tree_attention(
            [-1], [t + 1], torch.zeros(1, 1, dtype=torch.int32), [0], num_heads=4, num_kv_heads=2,
            head_dim=16, page_size=16,
        )  # fmt: skip
        at = torch.tensor([t])
        space = torch.empty(plan.workspace_numel)
        hidden = layers.step(token[None], at, at, caches, plan, space)
    want = base(tokens[None]).last_hidden_state[0, -1]
    assert (hidden[0] - want).abs().max() < 2e-5 * want.abs().max()


NCU = """==PROF== Connected to process 12
some text of the program
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","12","attend_kernel","GPU Speed Of Light","DRAM Throughput","%","41.5"
"0","12","attend_kernel","Warp State","No Eligible","%","1,070.2"
"""


def test_counters_are_read():
    from bench.gpu.parts.tools import read_metrics

    assert read_metrics(NCU) == {"DRAM Throughput [%]": "41.5", "No Eligible [%]": "1,070.2"}
    assert read_metrics("==ERROR== no counters\n") == {}


def test_what_tools_look_at_is_in_the_run():
    from bench.gpu.parts import times
    from bench.gpu.parts.tools import COUNTED

    for name, (case, kernel) in COUNTED.items():
        part = getattr(times, name.partition(",")[0].replace("-", "_"))
        assert case in [each.name for each in part(Machine("record"))]
        assert f"def {kernel}(" in "".join(
            path.read_text() for path in (ROOT / "kernels").glob("*.py")
        )


def test_a_graph_of_a_millisecond_is_timed_without_its_launch(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    graphs = []
    monkeypatch.setattr(
        torch.cuda, "CUDAGraph", lambda: graphs.append(FakeGraph(gpu)) or graphs[-1]
    )
    (timing,) = Machine("gpu").time([gpu.call, gpu.call], rounds=7)
    assert timing.captured
    assert timing.seconds == pytest.approx([10e-6] * 7)
    assert [len(graph.calls) for graph in graphs] == [2, 100]
    assert gpu.mode == "default"


def test_a_call_that_waits_is_launched_by_itself(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    ours, peer = Machine("gpu").time([gpu.call], [gpu.waiting_call], rounds=3)
    assert (ours.captured, peer.captured) == (True, False)
    assert peer.seconds == pytest.approx([10e-6] * 3)
    assert gpu.mode == "default"


def test_a_capture_that_fails_ends_the_process(monkeypatch):
    gpu = FakeGpu(monkeypatch)

    def call():
        if gpu.recorded is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        gpu.call()

    with pytest.raises(CaptureFailed, match="not permitted"):
        Machine("gpu").time([call])
    assert gpu.mode == "default"


def test_inputs_fill_the_cache_four_times(monkeypatch):
    FakeGpu(monkeypatch)
    machine = Machine("gpu")
    assert machine.sets(2 * 151936) * 2 * 151936 >= 4 * L2_BYTES
    assert machine.sets(10**9) == 1
    assert machine.sets(10**6, most=3) == 3
    assert Machine("dry").sets(1) == 1


@pytest.mark.parametrize(("rows", "splits"), [(3, 1), (70, 1), (5, 3)])
def test_the_skinny_product_is_a_product(rows, splits, in_interpreter):
    from bench.gpu.parts.skinny import skinny_product

    x, weight = torch.randn(rows, 272).bfloat16(), torch.randn(136, 272).bfloat16()
    got = skinny_product(x, weight, splits)
    want = x.double() @ weight.double().T
    assert got.shape == ((rows, 136) if splits == 1 else (splits, rows, 136))
    if splits == 1:
        assert got.dtype == torch.bfloat16
        assert (got.double() - want).abs().max() <= 2.0**-8 * want.abs().max()
    else:
        assert (got.double().sum(0) - want).abs().max() <= 1e-5 * want.abs().max()


PRETEND = """
import json, sys
import pytest
from bench.gpu.parts import skinny, step, sweeps, times
from bench.gpu.launches import recording
from tests.support.compiling import compiling_python
from tests.bench.fake_gpu import FakeGpu, PretendMachine

with recording("sm_90") as seen:
    machine = PretendMachine(FakeGpu(pytest.MonkeyPatch(), seen))
    for part in (times.confidence, times.sampling, times.lm_head, times.attention, times.append_kv,
                 sweeps.attention, sweeps.lm_head, sweeps.confidence, step.products, step.captured):
        for case in part(machine):
            machine.inputs = []
            row = case.run()
            told = {name: row[name] for name in ("us", "floor_us")} | {"inputs": machine.inputs}
            print(json.dumps({"part": part.__module__, "case": case.name} | told))
"""


@pytest.mark.slow  # a dry run of bench.gpu walks the same parts
def test_the_timing_parts_as_on_a_gpu():
    """Sizes, inputs and graphs of a GPU; a driver whose launches take 10 microseconds each."""
    done = compiling_python("-c", PRETEND)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(text) for text in done.stdout.splitlines()]
    assert len(rows) > 90
    launches = {"topk_confidence": 1, "sample_confidence": 1, "tree_attention": 2, "append_kv": 1}
    for row in rows:
        name, rows_of_it = row["case"].split()[:2]
        if row["part"] == "bench.gpu.parts.times":
            # Four for the LM head, and one beside a library's product.
            expected = launches.get(name) or (4 if int(rows_of_it) <= 64 else 1)
            assert row["us"] == pytest.approx(10 * expected), row
        if name not in ("append_kv", "step"):
            nbytes = row["floor_us"] * 1e6  # at the ceiling of PretendMachine
            assert min(row["inputs"]) * nbytes >= 4 * L2_BYTES, row
