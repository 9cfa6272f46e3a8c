"""One search schedule, replayed by marco_fast and by every engine a user would pick, in turns.

python -m bench.engines.install            # once: the other engines, each in its own environment
python -m bench.engines.replay [--cases NAMES] [--engines NAMES] [--out FILE]

Each engine is a process that loads the same weights and then replays the schedule whenever it is
its turn (bench/engines/peers/protocol.py); nothing else may run meanwhile, and a turn waits for an
idle machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.common.machine import describe
from bench.common.roofline import peak, read_bandwidth
from bench.engines.install import ENVIRONMENTS, installed, python_of
from bench.engines.models import make_model
from bench.engines.schedule import make_schedule

ROOT = Path(__file__).parents[2]
MODELS = ROOT / ".peers" / "models"
NANO = ROOT / "marco_fast" / "models" / "nano-marco"
ENGINES = [
    "ours", "generate", "transformers", "vllm", "llama_cpp", "openvino", "published_loop",
]  # fmt: skip
# name: model, precision, prompt tokens, branches, rounds, tokens per expansion
CASES = {
    "80m-float32-8": ("80m", "float32", 200, 8, 4, 32),
    "80m-bfloat16-8": ("80m", "bfloat16", 200, 8, 4, 32),
    "80m-float32-32": ("80m", "float32", 200, 32, 3, 32),
    "80m-bfloat16-32": ("80m", "bfloat16", 200, 32, 3, 32),
    "0.5b-bfloat16-8": ("0.5b", "bfloat16", 200, 8, 2, 32),
    "nano-float32-16": ("nano-marco", "float32", 60, 16, 4, 32),
}
TURNS, MORE_TURNS = 3, 9  # the more where each engine replays within SHORT seconds
SHORT = 1.5
BUSY = 0.1  # share of the machine that others may use when a turn begins
LOADING = 300  # seconds that an engine may take to load and warm up; a replay may take half of it


class Engine:
    """One peer's process."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        self.name = name
        environment = {**os.environ, "PYTHONPATH": str(ROOT)} if name == "ours" else None
        script = ROOT / "bench/engines/peers" / f"{name}.py"
        self.process = subprocess.Popen(
            [str(python_of(name)), str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def answer(self, limit: float) -> dict[str, Any]:
        """The next line that the process prints; an error after `limit` seconds, or if it ended."""
        timer = threading.Timer(limit, self.process.kill)
        timer.start()
        try:
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        return json.loads(line) if line else {"error": f"no answer within {limit:.0f} s"}

    def run(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        print("run", file=self.process.stdin, flush=True)
        return self.answer(LOADING / 2)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def busy(seconds: float = 0.5) -> float:
    """Share of all processors that worked during the next `seconds` seconds."""

    def read() -> tuple[int, int]:
        ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        return sum(ticks), ticks[3] + ticks[4]

    total, idle = read()
    time.sleep(seconds)
    later, still = read()
    return 1 - (still - idle) / max(1, later - total)


def wait_until_idle(limit: float = 30) -> float:
    """Wait for an idle machine, `limit` seconds at most; the share in use at the end."""
    end = time.monotonic() + limit
    while (share := busy()) > BUSY and time.monotonic() < end:
        pass
    return share


def model_folder(name: str) -> Path:
    if name == "nano-marco":
        return NANO
    folder = MODELS / name
    if not (folder / "config.json").is_file():
        print(f"making the {name} model in {folder}", flush=True)
        make_model(name, folder)
    return folder


def floor_seconds(folder: Path, precision: str, schedule: dict[str, Any], threads: int) -> float:
    """Seconds to read all weights and the tree's KV once per step, or to multiply, if longer."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    count, config = sum(each.numel() for each in model.parameters()), model.config
    dtype = getattr(torch, precision)
    heads = config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * head_dim * dtype.itemsize
    bandwidth, flops = read_bandwidth(threads), peak(dtype, threads)
    seconds, parents = 0.0, {each["node"]: each["parent"] for r in schedule["rounds"] for each in r}
    for expansions in schedule["rounds"]:
        tokens = expansions[0]["tokens"]
        above = {0}
        for each in expansions:
            node = each["parent"]
            while node:
                above.add(node)
                node = parents[node]
        unique = len(schedule["prompt"]) + tokens * (len(above) - 1 + len(expansions) / 2)
        read = (count * dtype.itemsize + unique * token) / bandwidth
        seconds += tokens * max(read, 2 * count * len(expansions) / flops)
    return seconds


@contextmanager
def started(names: list[str], arguments: list[str]) -> Iterator[tuple[list[Engine], list[dict]]]:
    """Load the engines one after the other: those that run, and why the others do not."""
    engines, entries = [], []
    try:
        for name in names:
            if name in ENVIRONMENTS and not installed(name):
                entries.append({"engine": name, "skipped": "not installed"})
                continue
            engine = Engine(name, arguments)
            ready = engine.answer(LOADING)
            if "error" in ready:
                engine.close()
                entries.append({"engine": name, "skipped": ready["error"]})
                print(f"  {name}: {ready['error']}", flush=True)
                continue
            engines.append(engine)
            del ready["ready"]
            entries.append(ready)
            print(f"  {ready['engine']} {ready['version']}: {ready['precision']}", flush=True)
        yield engines, entries
    finally:
        for engine in engines:
            engine.close()


def take_turns(engines: list[Engine], entries: list[dict]) -> None:
    """Replay in turns and fill the entries with the seconds of each replay."""
    running = [entry for entry in entries if "skipped" not in entry]
    for turn in range(MORE_TURNS):
        if turn >= TURNS and any(max(each.get("seconds", [0])) > SHORT for each in running):
            break
        for engine, entry in zip(engines, running, strict=True):
            if "skipped" in entry:
                continue
            entry.setdefault("busy_before", []).append(round(wait_until_idle(), 3))
            result = engine.run()
            if "error" in result:
                entry["skipped"] = result["error"]
                continue
            entry.setdefault("seconds", []).append(round(result["seconds"], 4))
            entry |= {key: result[key] for key in ("expansions", "tokens", "mean_confidence")}
    for entry in running:
        if "skipped" not in entry:
            median = statistics.median(entry["seconds"])
            entry["expansions_per_second"] = round(entry["expansions"] / median, 3)
            entry["tokens_per_second"] = round(entry["tokens"] / median, 1)


def run_case(name: str, names: list[str], threads: int) -> dict[str, Any]:
    model, precision, prompt_tokens, branches, rounds, tokens = CASES[name]
    folder = model_folder(model)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    prompt = [3 + (i * 7919) % (vocabulary - 3) for i in range(prompt_tokens)]
    schedule = make_schedule(prompt, branches=branches, rounds=rounds, tokens=tokens)
    print(f"{name}", flush=True)
    case = {
        "model": model if model == "nano-marco" else f"qwen2-{model}",
        "precision": precision,
        "threads": threads,
        "prompt_tokens": prompt_tokens,
        "branches": branches,
        "rounds": rounds,
        "tokens": tokens,
        "floor_seconds": round(floor_seconds(folder, precision, schedule, threads), 4),
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(schedule, file)
        file.flush()
        arguments = [
            "--model", str(folder), "--precision", precision, "--threads", str(threads),
            "--schedule", file.name,
        ]  # fmt: skip
        with started(names, arguments) as (engines, entries):
            take_turns(engines, entries)
    tokens_first = {entry["argmax"] for entry in entries if "argmax" in entry}
    if len(tokens_first) > 1:
        raise SystemExit(f"expected one most likely token from every engine, got {entries}")
    for entry in entries:
        if "seconds" in entry:
            print(
                f"    {entry['engine']:<22} {entry['expansions_per_second']:>8.2f} expansions/s  "
                f"{entry['tokens_per_second']:>8.0f} tokens/s  {entry['seconds']}",
                flush=True,
            )
    return {**case, "engines": entries}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--engines", nargs="*", choices=ENGINES, default=ENGINES)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/cpu/search.json")
    options = parser.parse_args()
    known = json.loads(options.out.read_text())["cases"] if options.out.is_file() else []
    cases = {tuple(each[key] for key in ("model", "precision", "branches")): each for each in known}
    for name in options.cases:
        case = run_case(name, options.engines, options.threads)
        engines = " ".join(options.engines)
        command = f"python -m bench.engines.replay --cases {name} --engines {engines}"
        case |= {"command": command, "machine": describe()}
        cases[case["model"], case["precision"], case["branches"]] = case
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"cases": list(cases.values())}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
