"""One search schedule, replayed by marco_fast and by every engine a user would pick, in turns.

python -m bench.engines.install            # once: the other engines, each in its own environment
python -m bench.engines.replay [--cases NAMES] [--engines NAMES] [--out FILE]

bench/engines/turns.py says how they take turns; nothing else may run meanwhile.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.common.machine import describe
from bench.common.roofline import peak, read_bandwidth
from bench.engines.models import make_model
from bench.engines.schedule import make_schedule
from bench.engines.turns import Entrant, one_argmax, show, started, take_turns

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
SECONDS = 30  # of replays after which a case's fourth or later turn does not begin


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
        with started([Entrant(each, arguments) for each in names]) as (engines, entries):
            one_argmax(entries)
            take_turns(engines, entries, seconds=SECONDS)
    show(entries)
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
        try:
            case = run_case(name, options.engines, options.threads)
        except ValueError as error:
            sys.exit(str(error))
        engines = " ".join(options.engines)
        command = f"python -m bench.engines.replay --cases {name} --engines {engines}"
        case |= {"command": command, "machine": describe()}
        cases[case["model"], case["precision"], case["branches"]] = case
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"cases": list(cases.values())}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
