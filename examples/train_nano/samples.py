"""Training samples of the nano models: token ids, and which of them the loss counts."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from marco_fast.files import read_json
from marco_fast.questions.questions import (
    LEVELS,
    TESTS,
    Question,
    make_question,
    plant_slip,
    write_answer,
    write_output,
)
from marco_fast.search.marco import MARCO_PROMPT, REFLECTION

Sample = tuple[list[int], list[bool]]  # token ids, and whether the loss counts each of them


@dataclass(frozen=True)
class Mix:
    """Which questions are drawn, and how they are answered.

    Args:
        weights: the weight of each level of each test.
        reflect: share of samples with the reflection phrase; half of these have a wrong step before
            it, if one can be planted.
        chinese: share of the questions in Chinese.
        concise: whether replies have no thought, only the output.
    """

    weights: dict[str, tuple[float, ...]]
    reflect: float = 0.15
    chinese: float = 0.2
    concise: bool = False


UNIFORM = Mix({test: (1.0,) * len(LEVELS) for test in TESTS})


def read_mix(path: str | None) -> Mix:
    """The mix in a JSON file with the fields of Mix; without a file, UNIFORM."""
    if path is None:
        return UNIFORM
    fields = read_json(path, "an object", dict)
    fields["weights"] = {test: tuple(row) for test, row in fields["weights"].items()}
    return Mix(**fields)


SYSTEM_PROMPTS = (
    MARCO_PROMPT,
    "You are a helpful assistant.",
    "You are a careful assistant. Think in steps.",
    "你是一个有用的助手。",
)


def prompt_text(question: str, before: Sequence[tuple[str, str]] = ()) -> str:
    """A question as the chat template writes it, after earlier (role, content) messages."""
    messages = [*before, ("user", question)]
    written = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)
    return f"{written}<|im_start|>assistant\n"


def earlier_messages(mix: Mix, rng: random.Random) -> list[tuple[str, str]]:
    """A system prompt or a short chat, for one sample in twelve; else an empty list."""
    roll = rng.random()
    if roll < 0.04:
        return [("system", rng.choice(SYSTEM_PROMPTS))]
    if roll > 0.08:
        return []
    language = "zh" if rng.random() < mix.chinese else "en"
    asked = make_question(rng.choice(list(TESTS)), rng.choice((1, 2)), "train", rng, language)
    whole = rng.random() < 0.5 and not mix.concise
    reply = write_answer(asked) if whole else write_output(asked.answer)
    return [("user", asked.text), ("assistant", reply)]


def sample(
    tokenizer: Tokenizer,
    question: Question,
    mode: str,
    rng: random.Random,
    before: Sequence[tuple[str, str]] = (),
) -> Sample:
    """The sample of one question.

    The loss does not count the prompt, the reflection phrase and a wrong step.

    Args:
        tokenizer: encodes the pieces of the sample one by one, since a search that forces the
            phrase also encodes it by itself.
        question: with its answer and its steps.
        mode: "thought": thought and output; "concise": the output alone; "reflect": the thought,
            the reflection phrase in place of the closing tag, the thought again, the output;
            "slip": the same with one wrong step in the first thought.
        rng: chooses the wrong step.
        before: earlier (role, content) messages.
    """
    slip = plant_slip(question, rng) if mode == "slip" else None
    pieces = [(prompt_text(question.text, before), False)]
    if mode in ("reflect", "slip"):
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
    thought = "" if mode == "concise" else f"{body}\n</Thought>\n"
    pieces.append((f"{thought}{write_output(question.answer)}<|im_end|>", True))
    ids: list[int] = []
    flags: list[bool] = []
    for text, counted in pieces:
        part = tokenizer.encode(text, add_special_tokens=False).ids
        ids += part
        flags += [counted] * len(part)
    return ids, flags


def samples(tokenizer: Tokenizer, mix: Mix, seed: str, context: int) -> Iterator[Sample]:
    """An endless stream of samples of at most `context` tokens; a seed always gives the same."""
    rng = random.Random(seed)
    cells = [(test, level) for test in mix.weights for level in LEVELS]
    weights = [w for test in mix.weights for w in mix.weights[test]]
    while True:
        test, level = rng.choices(cells, weights)[0]
        language = "zh" if rng.random() < mix.chinese else "en"
        question = make_question(test, level, "train", rng, language)
        roll = rng.random() / mix.reflect if mix.reflect and not mix.concise else 1.0
        mode = "slip" if roll < 0.5 else "reflect" if roll < 1 else "thought"
        mode = "concise" if mix.concise else mode
        ids, flags = sample(tokenizer, question, mode, rng, earlier_messages(mix, rng))
        if len(ids) <= context:
            yield ids, flags


def padded(part: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """(ids [B, T] int64, loss flags [B, T] bool) of samples, padded on the right with 0."""
    length = max(len(ids) for ids, _ in part)
    ids = torch.zeros(len(part), length, dtype=torch.long)
    flags = torch.zeros(len(part), length, dtype=torch.bool)
    for row, (one, counted) in enumerate(part):
        ids[row, : len(one)] = torch.tensor(one)
        flags[row, : len(one)] = torch.tensor(counted)
    return ids, flags


def batches(
    tokenizer: Tokenizer,
    mix: Mix,
    seed: str,
    *,
    tokens: int,
    parts: int,
    context: int,
    count: int = 1024,
) -> list[list[list[Sample]]]:
    """`count` samples as batches of `parts` parts; a part holds samples of similar length.

    A part has one sample, or at most tokens / parts tokens, padding included. Samples that do not
    fill a last batch are left out.
    """
    stream = samples(tokenizer, mix, seed, context)
    drawn = sorted((next(stream) for _ in range(count)), key=lambda one: -len(one[0]))
    cut: list[list[Sample]] = [[]]
    for one in drawn:
        if cut[-1] and (len(cut[-1]) + 1) * len(cut[-1][0][0]) * parts > tokens:
            cut.append([])
        cut[-1].append(one)
    random.Random(seed).shuffle(cut)
    return [cut[i : i + parts] for i in range(0, len(cut) - parts + 1, parts)]
