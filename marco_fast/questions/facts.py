"""The facts test: word problems about one person's things, with facts that do not matter."""

import random
from typing import NamedTuple

from marco_fast.questions.draft import Accept, Draft
from marco_fast.questions.words import (
    BOXES,
    NAMES_HE,
    NAMES_SHE,
    OBJECTS,
    ZH_NAMES_HE,
    ZH_NAMES_SHE,
    ZH_OBJECTS,
)
from marco_fast.questions.work import Work

# (events, largest number, irrelevant facts) of levels 1 to 8
_LEVELS = (
    (1, 9, 1), (1, 20, 1), (2, 50, 2), (3, 60, 2),
    (4, 99, 2), (5, 300, 3), (6, 600, 3), (8, 900, 3),
)  # fmt: skip


class _Wording(NamedTuple):
    """The sentence templates of a language.

    Their fields: {p} the person, {s} the person or a pronoun, {q} a friend, {o} the things counted,
    {x} other things, {n} a number, {k} a number of boxes, {b} the kind of box, {m} and {y} the
    Chinese measure words of {o} and {x}.
    """

    openings: tuple[str, ...]
    gains: tuple[str, ...]
    losses: tuple[str, ...]
    gains_of_boxes: str
    losses_of_boxes: str
    noise: tuple[tuple[str, str], ...]  # (sentence, its short name in the thought)
    questions: tuple[str, ...]
    space: str


_EN = _Wording(
    openings=("{p} has {n} {o}.", "{p} has {n} {o}.", "{p} starts with {n} {o}."),
    gains=(
        "{s} finds {n} more {o}.",
        "{s} buys {n} {o}.",
        "Then {s} gets {n} {o} from {q}.",
        "{q} gives {p} {n} {o}.",
        "Then {s} wins {n} {o}.",
        "After that {s} picks up {n} {o}.",
    ),
    losses=(
        "{s} loses {n} {o}.",
        "{s} gives {n} {o} to {q}.",
        "Then {s} sells {n} {o}.",
        "After that {s} gives away {n} of the {o}.",
        "{q} takes {n} {o} from {p}.",
    ),
    gains_of_boxes="{s} buys {k} {b} with {n} {o} each.",
    losses_of_boxes="{s} gives away {k} {b} with {n} {o} each.",
    noise=(
        ("{q} is {n} years old.", "{n} years"),
        ("{p} is {n} years old.", "{n} years"),
        ("{q} has {n} {o}.", "{q}'s {n} {o}"),
        ("{q} has {n} {x}.", "{n} {x}"),
        ("{p} also has {n} {x}.", "{n} {x}"),
        ("Last year {q} sold {n} {x}.", "{n} {x}"),
        ("The walk home takes {n} minutes.", "{n} minutes"),
        ("The bus has {n} seats.", "{n} seats"),
        ("The house has {n} windows.", "{n} windows"),
        ("It is {n} degrees outside.", "{n} degrees"),
        ("The shop is {n} meters away.", "{n} meters"),
    ),
    questions=(
        "How many {o} does {p} have now?",
        "How many {o} does {p} have in the end?",
        "How many {o} does {p} have?",
        "How many {o} are with {p} now?",
        "How many {o} does {p} have at the end?",
        "What is the number of {o} that {p} has now?",
        "Find how many {o} {p} has now.",
    ),
    space=" ",
)
_ZH = _Wording(
    openings=("{p}有{n}{m}{o}。", "{p}一开始有{n}{m}{o}。"),
    gains=(
        "{s}又找到{n}{m}{o}。",
        "{s}买了{n}{m}{o}。",
        "{q}给了{p}{n}{m}{o}。",
        "后来{s}又得到{n}{m}{o}。",
    ),
    losses=(
        "{s}丢了{n}{m}{o}。",
        "{s}给了{q}{n}{m}{o}。",
        "后来{s}卖掉了{n}{m}{o}。",
        "{q}从{p}那里拿走了{n}{m}{o}。",
    ),
    gains_of_boxes="{s}买了{k}袋{o}，每袋{n}{m}。",
    losses_of_boxes="{s}送掉了{k}袋{o}，每袋{n}{m}。",
    noise=(
        ("{q}今年{n}岁。", "{n} 岁"),
        ("{p}今年{n}岁。", "{n} 岁"),
        ("{q}有{n}{m}{o}。", "{q} {n} {o}"),
        ("{q}有{n}{y}{x}。", "{n} {x}"),
        ("{p}还有{n}{y}{x}。", "{n} {x}"),
        ("去年{q}卖了{n}{y}{x}。", "{n} {x}"),
        ("回家要走{n}分钟。", "{n} 分钟"),
        ("外面的气温是{n}度。", "{n} 度"),
        ("商店离这里{n}米。", "{n} 米"),
    ),
    questions=(
        "{p}现在有多少{m}{o}？",
        "{p}最后有多少{m}{o}？",
        "{p}一共有多少{m}{o}？",
        "请问{p}现在有几{m}{o}？",
    ),
    space="",
)


class _Event(NamedTuple):
    """One change of the total: `times` times `number` things come ("+") or go ("-")."""

    sentence: str
    sign: str
    number: int
    times: int


def _event(
    rng: random.Random, wording: _Wording, total: int, largest: int, words: dict[str, str]
) -> _Event:
    """A change of the total that leaves it within 0..999."""
    small = rng.randint(2, 9)
    each = rng.randint(2, max(3, min(largest // 4, 40)))
    roll = rng.random()
    many: dict[str, object] = {**words, "k": small, "n": each, "b": rng.choice(BOXES)}
    if roll < 0.2 and largest > 9 and total + small * each < 1000:
        return _Event(wording.gains_of_boxes.format(**many), "+", each, small)
    if roll < 0.28 and largest > 9 and small * each <= total:
        return _Event(wording.losses_of_boxes.format(**many), "-", each, small)
    if total > 900 or (roll < 0.62 and total >= 3):
        number = rng.randint(2, min(largest, total - 1))
        return _Event(rng.choice(wording.losses).format(**words, n=number), "-", number, 1)
    number = rng.randint(2, min(largest, 999 - total))
    return _Event(rng.choice(wording.gains).format(**words, n=number), "+", number, 1)


def _people_and_things(rng: random.Random, zh: bool) -> dict[str, str]:
    """The words of a story: a person, a friend of the other gender, and two kinds of things.

    The genders differ so that a pronoun always means the person.
    """
    she = rng.random() < 0.5
    people, others = (ZH_NAMES_SHE, ZH_NAMES_HE) if zh else (NAMES_SHE, NAMES_HE)
    if not she:
        people, others = others, people
    if zh:
        (m, item), (y, other) = rng.sample(ZH_OBJECTS, 2)
        pronoun = "她" if she else "他"
    else:
        item, other = rng.sample(OBJECTS, 2)
        m = y = ""
        pronoun = "She" if she else "He"
    person, friend = rng.choice(people), rng.choice(others)
    return {"p": person, "q": friend, "o": item, "x": other, "m": m, "y": y, "s": pronoun}


def facts(level: int, rng: random.Random, accept: Accept, language: str) -> Draft:
    """A word problem of one to eight events, with one to three irrelevant facts."""
    wording = _ZH if language == "zh" else _EN
    events, largest, noises = _LEVELS[level - 1]
    while True:
        words = _people_and_things(rng, language == "zh")
        start = rng.randint(2, largest)
        story = _story(rng, wording, start, events, largest, words)
        numbers = [start, *(each.number * each.times for each in story)]
        key = "sums:" + " ".join(map(str, [words["p"], *numbers]))
        if accept(key):
            break
    noise = [
        (sentence.format(**words, n=number), brief.format(**words, n=number))
        for sentence, brief in rng.sample(wording.noise, noises)
        for number in [rng.randint(2, max(20, min(largest, 60)))]
    ]
    texts = [_after_then(each.sentence, words["s"]) for each in story]
    positions = sorted(rng.randint(0, len(texts)) for _ in noise)
    for position, (sentence, _) in reversed(list(zip(positions, noise, strict=True))):
        texts.insert(position, sentence)  # the thought lists these facts in the same order
    texts.insert(0, rng.choice(wording.openings).format(**words, n=start))
    texts.append(rng.choice(wording.questions).format(**words))

    def solve(work: Work) -> str:
        work.write(f"Not needed: {', '.join(brief for _, brief in noise)}.")
        return _count_along(work, words, start, story)

    return Draft(wording.space.join(texts), (key,), solve)


def _story(
    rng: random.Random,
    wording: _Wording,
    start: int,
    events: int,
    largest: int,
    words: dict[str, str],
) -> list[_Event]:
    """Events one after the other, each from the total that the one before it left."""
    story: list[_Event] = []
    total = start
    for _ in range(events):
        subject = words["s"] if rng.random() < 0.6 else words["p"]
        story.append(_event(rng, wording, total, largest, {**words, "s": subject}))
        change = story[-1].number * story[-1].times
        total += change if story[-1].sign == "+" else -change
    return story


def _count_along(work: Work, words: dict[str, str], start: int, story: list[_Event]) -> str:
    """Writes the total after every event; returns the last one."""
    work.write(f"{words['p']} starts with {start}.")
    total = start
    for each in story:
        change = each.number
        if each.times > 1:
            text, change = work.scale(change, each.times)
            work.write(f"{text}.")
        text, total = (work.add if each.sign == "+" else work.subtract)(total, change)
        work.write(f"{text}.")
    work.write(f"{words['p']} has {total} {words['o']}.")
    return str(total)


def _after_then(sentence: str, pronoun: str) -> str:
    """The sentence with a small letter in a pronoun that follows "Then" or "After that"."""
    for lead in ("Then ", "After that "):
        if sentence.startswith(lead + pronoun + " "):
            return lead + sentence[len(lead)].lower() + sentence[len(lead) + 1 :]
    return sentence
