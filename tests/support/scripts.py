"""Scripted replies: an engine that writes what a test says, over its own model's tree."""

import types
from collections.abc import Sequence
from typing import Any

import torch

from marco_fast import Engine, SearchConfig, SearchResult, solve
from marco_fast.search.tree import child_seed, root_seed

__all__ = ["EOS", "answered", "script"]

QUESTION = "q"
EOS = "<|im_end|>"
FILLER = range(100, 197)  # what follows a script: tokens of which no 97 are a loop


def script(engine: Engine, replies: Sequence[str], confidences: Sequence[float] = ()) -> None:
    """From now on the root's child number i is replies[i % len(replies)]; no action is cut.

    Special tokens in a reply are special. What follows one that does not end is filler.
    """
    ids = [engine.tokenizer(each, add_special_tokens=False)["input_ids"] for each in replies]
    root = root_seed(0, QUESTION)
    seeds = {child_seed(root, at): at % len(ids) for at in range(256)}
    scores = [*confidences] or [0.75] * len(ids)
    engine.begin = 0  # type: ignore[attr-defined]

    def sample(pending: Any, positions: list[int], batch: Any, *, seeds_of=seeds, **options: Any):
        at = [seeds_of.get(seed, 0) for seed in options["seeds"]]
        place = [position + 1 - engine.begin for position in positions]  # type: ignore[attr-defined]
        tokens = [
            ids[which][n] if n < len(ids[which]) else FILLER[n % len(FILLER)]
            for which, n in zip(at, place, strict=True)
        ]
        return types.SimpleNamespace(
            token_ids=torch.tensor(tokens),
            token_logprobs=torch.tensor([-0.1] * len(tokens)),
            confidence=torch.tensor([scores[which] for which in at], dtype=torch.float64),
            status=torch.zeros(len(tokens), dtype=torch.int32),
        )

    engine.sample = sample  # type: ignore[method-assign,assignment]


def answered(engine: Engine, replies: Sequence[str], **options: Any) -> SearchResult:
    """What solve() makes of scripted replies: each is one expansion, a single node."""
    confidences = options.pop("confidences", ())
    script(engine, replies, confidences)
    made = engine.prompt_token_ids

    def prompt(*given: Any) -> list[int]:
        ids = made(*given)
        engine.begin = len(ids)  # type: ignore[attr-defined]
        return ids

    engine.prompt_token_ids = prompt  # type: ignore[method-assign]
    kwargs = options.pop("chat_template_kwargs", None)
    system = options.pop("system", None)
    count = len(replies)
    config = {"expansions": count, "children": count, "step_tokens": 4096, "rollout_tokens": 0}
    try:
        return solve(
            QUESTION, engine, SearchConfig(**(config | options)),
            system=system, chat_template_kwargs=kwargs,
        )  # fmt: skip
    finally:
        engine.prompt_token_ids = made  # type: ignore[method-assign]
        del engine.sample
