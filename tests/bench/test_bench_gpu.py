"""The GPU run, rehearsed on a CPU: every part to its end; what goes wrong costs its rows alone."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from bench.gpu.machine import CaptureFailed, Machine
from bench.gpu.parts.step import Layers, Shape
from bench.gpu.run import PARTS
from bench.gpu.table import Results, fill, line, read, table
from tests.bench.fake_gpu import L2_BYTES, FakeGpu, FakeGraph
from tests.support.compiling import compiling_python

ROOT = Path(__file__).parents[2]

# A run of parts that misbehave, as a program: a part is a fork, which a process of pytest is too
# full of threads for.
PROGRAM = """
import os, sys, time
from dataclasses import dataclass
from bench.gpu import run
from bench.gpu.machine import Case, CaptureFailed


def broken_list(machine):
    yield Case("one", lambda: {"value": 1})
    raise KeyError("no such model")


def fail(error):
    raise error


PARTS = {
    "good": lambda m: [Case(f"case {i}", lambda i=i: {"value": i}) for i in range(3)],
    "raises": lambda m: [Case("a", lambda: {"value": 1}), Case("b", lambda: fail(ValueError("no"))),
                         Case("c", lambda: {"value": 3})],
    "crashes": lambda m: [Case("a", lambda: {"value": 1}), Case("b", lambda: os.abort()),
                          Case("c", lambda: {"value": 3})],
    "hangs": lambda m: [Case("a", lambda: {"value": 1}), Case("b", lambda: time.sleep(1000)),
                        Case("c", lambda: {"value": 3})],
    "poisons": lambda m: [Case("a", lambda: fail(CaptureFailed(str(os.getpid())))),
                          Case("b", lambda: {"value": os.getpid()})],
    "slow": lambda m: [Case(f"case {i}", lambda i=i: time.sleep(0.3) or {"value": i})
                       for i in range(100)],
    "broken": broken_list,
    "long": lambda m: PARTS["slow"](m),
    "last": lambda m: [Case("case", lambda: {"value": os.getpid()})],
}


@dataclass(frozen=True)
class Part:
    name: str
    seconds: float

    def cases(self, machine):
        return iter(PARTS[self.name](machine))


if __name__ == "__main__":
    names, arguments = sys.argv[1].split(","), sys.argv[2:]
    parts = [Part(name, 1.0 if name in ("hangs", "slow") else 20.0) for name in names]
    sys.exit(run.main(["--dry-run", *arguments], all_parts=parts))
"""


def run_parts(
    names: str, out: Path, *arguments: str, **options
) -> subprocess.CompletedProcess[str]:
    """A dry run of parts of PROGRAM."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, names, "--out", str(out), *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=60, **options,
    )  # fmt: skip


def told(out: Path) -> dict[str, list]:
    """Of each part the values or errors of its rows, and how it ended."""
    results = read(out / "gpu.jsonl")
    return {
        part: [row.get("value", row.get("error")) for row in rows] + [results.ends[part]["ended"]]
        for part, rows in results.rows.items()
    }


def dry_run(out: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--dry-run", "--out", str(out), *arguments],
        env=plain, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip


def assert_whole(out: Path) -> Results:
    """Every part ended with rows and without an error."""
    results = read(out / "gpu.jsonl")
    assert [*results.rows] == [part.name for part in PARTS]
    for part, rows in results.rows.items():
        assert results.ends[part]["ended"] == "ok", results.ends[part]
        assert rows, part
        assert all("error" not in row for row in rows), rows
    assert results.failures() == []
    return results


def test_a_dry_run_walks_every_part(tmp_path):
    done = dry_run(tmp_path, "--minutes", "30", "--commit", "0123abc")
    assert done.returncode == 0, done.stdout + done.stderr
    results = assert_whole(tmp_path)
    assert results.run["mode"] == "dry"
    assert results.environment()["commit"] == "0123abc"
    assert results.environment()["extension"] is True
    (compiled,) = results.rows["compile"]
    assert 40 <= compiled["specializations"] <= 60  # each is a second of compilation
    assert compiled["launches"] > 1000
    for part in ("confidence", "sampling", "lm-head", "attention", "append-kv"):
        for row in results.rows[part]:
            assert row["us"] > 0
            assert row["floor_us"] > 0
    for part in (part.name for part in PARTS if part.name.startswith("peers-")):
        for row in results.rows[part]:
            assert row["ratio"] == pytest.approx(row["peer_us"] / row["us"])
    assert (tmp_path / "table.txt").read_text() == table(results)
    assert done.stdout.endswith(table(results) + "\n")


def test_a_dry_run_without_the_extension_and_a_compiler(tmp_path):
    """As on a machine that has the repository and its Python packages, and nothing else."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("bench", "kernels", "marco_fast", "tests", "setup.py"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(checkout / name)], check=True)
    for extension in checkout.rglob("_C*.so"):
        extension.unlink()
    # Without `site` an installation that points to this checkout is not found either.
    program = (
        "import sys; sys.path[:0] = ['.', sys.argv.pop(1)]\n"
        "for name in ('cpuinfo', 'pytest', 'hypothesis', 'pybind11'): sys.modules[name] = None\n"
        "from bench.gpu.run import main; sys.exit(main(sys.argv[1:]))"
    )
    packages, out = Path(torch.__file__).parents[1], tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, str(packages), "--dry-run", "--out", str(out)],
        env={"OMP_NUM_THREADS": "1", "PATH": "/nonexistent"},
        capture_output=True, text=True, cwd=checkout,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no C++ extension and no compiler" in done.stdout
    results = assert_whole(out)
    assert results.environment()["extension"] is False
    assert results.environment()["instruction_set"] is None
    assert results.environment()["commit"] is None


def test_what_goes_wrong_costs_its_rows_alone(tmp_path):
    done = run_parts("good,raises,crashes,hangs,poisons,broken,last", tmp_path)
    assert done.returncode == 1, done.stderr
    got = told(tmp_path)
    assert got["good"] == [0, 1, 2, "ok"]
    assert got["raises"] == [1, "ValueError: no", 3, "ok"]
    assert got["crashes"] == [1, "crashed: SIGABRT", 3, "ok"]
    assert got["hangs"][:2] == [1, "killed: its time was over"]
    assert got["hangs"][2].startswith("out of time")
    wrong, other, ended = got["poisons"]
    assert wrong.startswith("CaptureFailed: ")
    assert wrong != f"CaptureFailed: {other}"  # the next case had a process of its own
    assert ended == "ok"
    assert got["broken"] == [1, "KeyError: 'no such model'"]
    assert got["last"][1] == "ok"
    assert got["last"][0] != other
    failed = read(tmp_path / "gpu.jsonl").failures()
    assert failed == [
        "raises: b", "crashes: b", "hangs: b", "poisons: a", "broken: KeyError: 'no such model'"
    ]  # fmt: skip
    assert "FAILED ValueError: no" in done.stdout
    row = next(r for r in read(tmp_path / "gpu.jsonl").rows["raises"] if "error" in r)
    assert "in fail" in row["traceback"]


def test_a_part_ends_with_its_budget(tmp_path):
    done = run_parts("slow,last", tmp_path)
    assert done.returncode == 0, done.stdout
    results = read(tmp_path / "gpu.jsonl")
    assert results.ends["slow"]["ended"] == "out of time"
    assert 1 <= len(results.rows["slow"]) <= 5  # a second of cases that take 0.3
    assert results.ends["slow"]["left"][-1] == "case 99"
    assert results.ends["last"]["ended"] == "ok"
    assert "not begun: " in done.stdout


def test_the_run_ends_with_its_minutes(tmp_path):
    begin = time.monotonic()
    done = run_parts("long,last", tmp_path, "--minutes", "0.1")
    assert time.monotonic() - begin < 10  # 6 of its own, and PyTorch's import
    assert done.returncode == 0, done.stdout
    ends = read(tmp_path / "gpu.jsonl").ends
    assert [ends[part]["ended"] for part in ("long", "last")] == ["out of time", "no time left"]


def test_chosen_parts_alone_and_earlier_rows_are_kept(tmp_path):
    assert run_parts("good,last", tmp_path).returncode == 0
    first = (tmp_path / "gpu.jsonl").read_text()
    for number in (1, 2):
        assert run_parts("good,last", tmp_path, "--parts", "last").returncode == 0
        assert [*told(tmp_path)] == ["last"]
        assert (tmp_path / "gpu.1.jsonl").read_text() == first
        assert (tmp_path / "gpu.2.jsonl").exists() == (number == 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_kill_at_any_moment_leaves_rows_and_a_table(tmp_path, number):
    rng = random.Random(number)
    for attempt in range(4):
        out = tmp_path / str(attempt)
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "good,slow,last", "--out", str(out)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        for text in process.stdout:
            if text.startswith("== slow"):
                break
        time.sleep(rng.uniform(0.0, 0.8))
        process.send_signal(number)
        rest = process.stdout.read()
        code = process.wait(timeout=20)
        results = read(out / "gpu.jsonl")
        assert [row["value"] for row in results.rows["good"]] == [0, 1, 2]
        values = [row["value"] for row in results.rows.get("slow", [])]
        assert values == [*range(len(values))]
        assert "case 2" in table(results)
        assert "case 2" in (out / "table.txt").read_text()  # of the parts that had ended
        if number == signal.SIGTERM:
            assert code == 130
            assert results.ends["run"]["ended"] == "interrupted: SIGTERM"
            assert "failed: run: interrupted: SIGTERM" in rest


def test_a_killed_run_leaves_no_process_behind(tmp_path):
    mark = f"marco-{os.getpid()}-{time.monotonic()}"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "hangs", "--out", str(tmp_path), "--commit", mark],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for text in process.stdout:
        if "value 1" in text:
            break
    assert marked(mark) == 2  # the run and its part
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert marked(mark) == 0


def marked(mark: str) -> int:
    """How many processes have this in their command line."""
    found = 0
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += mark in each.read_text()
        except OSError:
            continue
    return found


def test_a_line_that_was_cut_is_left_out(tmp_path):
    file = tmp_path / "gpu.jsonl"
    whole = json.dumps({"part": "smoke", "case": "a", "us": 1.0})
    file.write_text(f"{whole}\n{whole[:20]}")
    assert [row["case"] for row in read(file).rows["smoke"]] == ["a"]
    file.write_text(f"{whole[:20]}\n{whole}\n")
    with pytest.raises(ValueError, match="expected a record in line 1"):
        read(file)


def test_a_row_has_floor_and_peer():
    row = {
        "case": "x",
        "us": 10.0,
        "floor_us": 5.0,
        "peer_us": 30.0,
        "ratio": 3.0,
        "captured": True,
    }
    text = line(row)
    assert "10.0 us" in text
    assert "50% of the floor" in text
    assert "peer 30.0 us (3.00x)" in text
    assert "not captured" in line({**row, "captured": False})
    assert "FAILED ValueError: no" in line({"case": "x", "error": "ValueError: no\nmore"})


def test_documents_are_filled():
    text = (
        "| case | predicted us | measured | of the floor |\n|---|---|---|---|\n"
        "| `a` | 3 | | |\n| `b` | 4 | 9.0 | 1% |\n\n| `a` | `b` |\n|---|---|\n| `a` | |\n"
    )
    results = Results()
    results.add({"part": "x", "case": "a", "us": 12.34, "floor_us": 6.17})
    filled = fill(text, results).split("\n")
    assert filled[2] == "| `a` | 3 | 12.3 | 50% |"
    assert filled[3] == "| `b` | 4 | 9.0 | 1% |"
    assert filled[4:] == text.split("\n")[4:]


def test_documents_name_cases_of_the_run():
    """Else a run could not fill them."""
    machine = Machine("record")
    cases = {case.name for part in PARTS for case in part.cases(machine)}
    text = (ROOT / "docs" / "gpu.md").read_text()
    named = re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    assert len(named) >= 40
    assert [name for name in named if name not in cases] == []
    assert fill(text, Results()) == text
    for part in PARTS:
        assert part.name in text, part.name


def test_without_a_gpu_it_says_so(tmp_path):
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="")
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--out", str(tmp_path / "out")], env=environment,
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "expected a CUDA GPU, found" in done.stderr
    assert not (tmp_path / "out").exists()


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
    weights = []
    for layer in base.layers:
        a, mlp = layer.self_attn, layer.mlp
        a.q_proj.bias.normal_()
        joined = [getattr(a, f"{name}_proj") for name in "qkv"]
        weights.append({
            "norm1": layer.input_layernorm.weight, "norm2": layer.post_attention_layernorm.weight,
            "qkv": torch.cat([each.weight for each in joined]),
            "bias": torch.cat([each.bias for each in joined]), "o": a.o_proj.weight,
            "gate_up": torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
            "down": mlp.down_proj.weight,
        })  # fmt: skip
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
