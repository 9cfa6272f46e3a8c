"""How far a model in fewer bits is from itself in float32, on an English and a Chinese text.

python -m bench.engines.drift MODEL [bfloat16 int8 int4 int4:int8 FILE.gguf FILE.gguf:int8 ...]
    [--out FILE]

Each further argument is a dtype of Engine.from_pretrained for MODEL, or a GGUF file of the same
model. Behind a colon are the activations: int8, or a dtype (float32 else). A text's tokens are read
in one pass through the pages of an engine's cache, as a search reads a prompt, and the logprobs of
all tokens at every position are compared with those in float32. Times play no part: any machine
does.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.common.machine import describe
from bench.engines.texts import TEXTS
from marco_fast import Engine
from marco_fast.engine.branches import Segment
from marco_fast.engine.native_runner import NativeRunner
from marco_fast.engine.runner import plan_segments
from marco_fast.errors import ModelError

__all__ = ["compared", "logprobs", "main"]

OUT = Path(__file__).parents[1] / "results" / "cpu" / "drift.json"
DTYPES = ("float32", "bfloat16", "int8", "int4")


@torch.inference_mode()
def logprobs(engine: Engine, ids: Sequence[int]) -> torch.Tensor:
    """The logprobs [len(ids), V] float32 after each token, before any temperature.

    Raises:
        ValueError: the model does not run in C++.
    """
    runner, cache = engine.runner, engine.cache
    if not isinstance(runner, NativeRunner):
        raise ValueError("expected a model whose layers run in C++")
    segment = Segment(None, 0, list(ids), prompt=True, kv=cache.add_root())
    try:
        slots = cache.extend(segment.kv, len(ids))
        lengths = torch.arange(1, len(ids) + 1)
        plan = plan_segments(runner, [segment], [segment] * len(ids), leaf_lens=lengths.numpy())
        hidden = runner.step(torch.tensor(ids), lengths - 1, slots, plan)
    finally:
        cache.release(segment.kv)
    weight, bias = runner.head
    if isinstance(weight, torch.Tensor):
        logits = torch.nn.functional.linear(hidden.float(), weight.float(), bias)
    else:  # quantised
        logits = weight.product(hidden.float(), bias)
    return logits.log_softmax(-1)


def compared(right: torch.Tensor, other: torch.Tensor, ids: Sequence[int]) -> dict[str, Any]:
    """The drift of other logprobs from the right ones.

    Args:
        right, other: [T, V] after each token of a text. ids: its tokens, [T].

    Returns:
        kl: the mean of KL(right || other) of a position, in nats. largest: the largest difference
        of the logprob of one of the text's tokens. same: the share of positions with the same most
        likely token. tokens: how many positions that is.
    """
    kl = (right.exp() * (right - other)).nan_to_num(0.0).sum(-1)
    follows = torch.tensor(ids[1:])[:, None]
    apart = (right[:-1].gather(1, follows) - other[:-1].gather(1, follows)).abs()
    return {
        "kl": float(kl.mean()),
        "largest": float(apart.max()),
        "same": float((right.argmax(-1) == other.argmax(-1)).float().mean()),
        "tokens": len(right),
    }


def _loaded(model: str, other: str) -> Engine:
    """The engine that an argument of the command line means."""
    name, _, behind = other.rpartition(":") if ":" in other else (other, "", "")
    activations, dtype = (behind, "") if behind == "int8" else (None, behind)
    path, dtype = (model, name) if name in DTYPES else (name, dtype or "float32")
    return Engine.from_pretrained(
        path, dtype=dtype, activations=activations, max_branches=2, kv_tokens=4096
    )


def drift(model: str, others: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each of the others, with the figures of each text."""
    rows, ids, right = [], {}, {}
    with _loaded(model, "float32") as engine:
        for name, text in TEXTS.items():
            read = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
            ids[name] = read[: engine.context]
            right[name] = logprobs(engine, ids[name])
    for other in others:
        try:
            with _loaded(model, other) as engine:
                found = {
                    name: compared(right[name], logprobs(engine, ids[name]), ids[name])
                    for name in TEXTS
                }
        except (ModelError, ValueError) as error:
            print(f"{other}: left out: {error}", flush=True)
            continue
        rows.append({"model": Path(model).name, "weights": Path(other).name, **found})
        for name, each in found.items():
            print(
                f"{rows[-1]['weights']:24} {name:8} KL {each['kl']:.2g} nats a token, largest "
                f"difference {each['largest']:.2g}, same most likely token {each['same']:.1%}",
                flush=True,
            )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("others", nargs="*", default=list(DTYPES[1:]))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    rows = drift(options.model, options.others or list(DTYPES[1:]))
    known = json.loads(options.out.read_text())["rows"] if options.out.is_file() else []
    merged = {(each["model"], each["weights"]): each for each in [*known, *rows]}
    told = {"command": "python -m bench.engines.drift", **describe()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**told, "rows": list(merged.values())}, indent=1, ensure_ascii=False)
    options.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
