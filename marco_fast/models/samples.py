"""Training samples of the nano models: token ids, and which of them the loss counts."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer

from .questions import LEVELS, REFLECTION, TESTS, Question, make_question, plant_slip, write_output


@dataclass(frozen=True)
class Mix:
    """Which questions are drawn, and how often their thoughts are reconsidered.

    Args:
        weights: for each test, the weight of each level.
        reflect: share of samples with the reflection phrase; half of them, where one can be
            planted, have a slip before it.
    """

    weights: dict[str, tuple[float, ...]]
    reflect: float = 0.15


UNIFORM = Mix({test: (1.0,) * len(LEVELS) for test in TESTS})


def prompt_text(question: str) -> str:
    """A question as the chat template writes it."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def sample(tokenizer: Tokenizer, question: Question, mode: str, rng: random.Random):
    """(ids, loss flags) of one sample.

    Args:
        mode: "plain", or "reflect" or "slip": the thought, right or with one wrong step, then the
            phrase in place of the closing tag, then the thought again. The pieces are encoded one
            by one, as a search that forces the phrase has them. The phrase and the wrong step have
            no loss.
    """
    slip = plant_slip(question, rng) if mode == "slip" else None
    pieces = [(prompt_text(question.text), False)]
    if mode != "plain":
        pieces.append(("<Thought>\n", True))
        steps = slip.steps if slip else question.steps
        for index, step in enumerate(steps):
            counted = slip is None or index != slip.slip_step
            pieces.append((step, counted))
            pieces.append(("\n" if index + 1 == len(steps) else "\n\n", True))
        pieces.append((REFLECTION, False))
        body = "\n\n".join(question.steps)
    else:
        body = "<Thought>\n" + "\n\n".join(question.steps)
    end = f"{body}\n</Thought>\n{write_output(question.answer)}<|im_end|>"
    pieces.append((end, True))
    ids: list[int] = []
    flags: list[bool] = []
    for text, counted in pieces:
        part = tokenizer.encode(text, add_special_tokens=False).ids
        ids += part
        flags += [counted] * len(part)
    return ids, flags


def samples(tokenizer: Tokenizer, mix: Mix, seed: str, context: int) -> Iterator[tuple]:
    """Endless samples of at most context tokens; the same seed gives the same ones."""
    rng = random.Random(seed)
    cells = [(test, level) for test in mix.weights for level in LEVELS]
    weights = [w for test in mix.weights for w in mix.weights[test]]
    while True:
        test, level = rng.choices(cells, weights)[0]
        question = make_question(test, level, "train", rng)
        roll = rng.random() / mix.reflect if mix.reflect else 1.0
        mode = "slip" if roll < 0.5 else "reflect" if roll < 1 else "plain"
        ids, flags = sample(tokenizer, question, mode, rng)
        if len(ids) <= context:
            yield ids, flags


def batches(
    tokenizer: Tokenizer,
    mix: Mix,
    seed: str,
    *,
    tokens: int,
    parts: int,
    context: int,
    count: int = 1024,
) -> list[list[list[tuple]]]:
    """`count` samples as batches of `parts` parts; a part holds samples of like length.

    A part has at most tokens / parts tokens, filled up to its longest sample, or one sample. What
    does not fill a last batch is left out.
    """
    stream = samples(tokenizer, mix, seed, context)
    drawn = sorted((next(stream) for _ in range(count)), key=lambda one: -len(one[0]))
    cut: list[list[tuple]] = [[]]
    for one in drawn:
        if cut[-1] and (len(cut[-1]) + 1) * len(cut[-1][0][0]) * parts > tokens:
            cut.append([])
        cut[-1].append(one)
    random.Random(seed).shuffle(cut)
    return [cut[i : i + parts] for i in range(0, len(cut) - parts + 1, parts)]
