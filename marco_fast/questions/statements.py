"""The contradictions test: which of several numbered statements cannot all be true."""

import random
from dataclasses import dataclass
from typing import NamedTuple

from marco_fast.questions.draft import Accept, Draft
from marco_fast.questions.words import (
    BELONGINGS,
    CITIES,
    COLORS,
    NAMES_HE,
    NAMES_SHE,
    OBJECTS,
    PLACES,
    SCALES,
    ZH_BELONGINGS,
    ZH_CITIES,
    ZH_COLORS,
    ZH_NAMES_HE,
    ZH_NAMES_SHE,
    ZH_OBJECTS,
    ZH_PLACES,
    ZH_SCALES,
    Scale,
)
from marco_fast.questions.work import Work

# (fewest statements, most statements, longest circle of comparisons) of levels 1 to 8
_LEVELS = ((2, 3, 2), (3, 3, 2), (3, 4, 2), (4, 5, 2), (5, 6, 3), (6, 7, 3), (7, 8, 4), (8, 10, 5))

_QUESTIONS = (
    "Which statements contradict each other?",
    "Which of these statements contradict each other?",
    "Which of them cannot all be true?",
    "Find the statements that contradict each other.",
    "Is there a contradiction? Name the statements.",
)
_ZH_QUESTIONS = (
    "哪些话互相矛盾？", "哪几句话互相矛盾？", "找出互相矛盾的话。", "哪些话不能都是真的？",
)  # fmt: skip
_NONE = {"en": "none", "zh": "没有"}


@dataclass(frozen=True)
class Fact:
    """A statement that gives an attribute a value; another value of the attribute conflicts."""

    text: str
    subject: str
    about: str
    value: str

    @property
    def attribute(self) -> str:
        """What can have one value only. The one attribute of a thing is its color."""
        return self.subject if self.about == "color" else f"{self.subject} {self.about}"


@dataclass(frozen=True)
class Order:
    """A statement that puts one person above another; comparisons in a circle conflict."""

    text: str
    more: str
    less: str


Statement = Fact | Order


class _World(NamedTuple):
    """The few people and things that the statements of one question are about."""

    zh: bool
    people: list[str]
    belongings: list[str]
    things: list[tuple[str, str]]  # (measure word, thing)
    places: list[str]


def _world(rng: random.Random, zh: bool) -> _World:
    things = ZH_OBJECTS if zh else [("", each) for each in OBJECTS]
    return _World(
        zh,
        rng.sample(ZH_NAMES_SHE + ZH_NAMES_HE if zh else NAMES_SHE + NAMES_HE, 5),
        rng.sample(ZH_BELONGINGS if zh else BELONGINGS, 3),
        rng.sample(things, 3),
        rng.sample(ZH_PLACES if zh else PLACES, 2),
    )


def _fact(rng: random.Random, world: _World, like: Fact | None = None) -> Fact:
    """A fact about one of the first three people or a thing; with `like`, its contradiction."""
    while True:
        made = rng.choice(_KINDS)(rng, world)
        if like is None or (made.attribute == like.attribute and made.value != like.value):
            return made


def _color(rng: random.Random, world: _World) -> Fact:
    thing, color = rng.choice(world.belongings), rng.choice(ZH_COLORS if world.zh else COLORS)
    text = f"{thing}是{color}的。" if world.zh else f"The {thing} is {color}."
    return Fact(text, thing, "color", color)


def _age(rng: random.Random, world: _World) -> Fact:
    person, years = rng.choice(world.people[:3]), str(rng.randint(5, 40))
    text = f"{person}今年{years}岁。" if world.zh else f"{person} is {years} years old."
    return Fact(text, person, "age", years)


def _count(rng: random.Random, world: _World) -> Fact:
    person, (measure, thing) = rng.choice(world.people[:3]), rng.choice(world.things)
    number = str(rng.randint(2, 30))
    text = (
        f"{person}有{number}{measure}{thing}。" if world.zh else f"{person} has {number} {thing}."
    )
    return Fact(text, person, thing, number)


def _home(rng: random.Random, world: _World) -> Fact:
    person, city = rng.choice(world.people[:3]), rng.choice(ZH_CITIES if world.zh else CITIES)
    text = f"{person}住在{city}。" if world.zh else f"{person} lives in {city}."
    return Fact(text, person, "home", city)


def _opening(rng: random.Random, world: _World) -> Fact:
    place, hour = rng.choice(world.places), str(rng.randint(6, 12))
    text = f"{place}{hour}点开门。" if world.zh else f"The {place} opens at {hour}."
    return Fact(text, place, "opens", hour)


_KINDS = (_color, _age, _count, _count, _home, _opening)


def _order(rng: random.Random, scale: Scale, more: str, less: str, zh: bool) -> Order:
    if zh:
        text = rng.choice((f"{more}比{less}{scale.more}。", f"{less}比{more}{scale.less}。"))
    else:
        text = rng.choice(
            (f"{more} is {scale.more} than {less}.", f"{less} is {scale.less} than {more}.")
        )
    return Order(text, more, less)


def contradictions(level: int, rng: random.Random, accept: Accept, language: str) -> Draft:
    """A question about two to ten statements; in about two of three, some contradict each other."""
    zh = language == "zh"
    fewest, most, longest = _LEVELS[level - 1]
    while True:
        statements = _statements(rng.randint(fewest, most), longest, rng, zh)
        key = "contradictions:" + " ".join(sorted(_content(each) for each in statements))
        if accept(key):
            break
    rng.shuffle(statements)
    sentences = [f"{number}. {each.text}" for number, each in enumerate(statements, 1)]
    sentences.append(rng.choice(_ZH_QUESTIONS if zh else _QUESTIONS))

    def solve(work: Work) -> str:
        return _check(work, statements, language)

    return Draft(" ".join(sentences), (key,), solve)


def _content(statement: Statement) -> str:
    if isinstance(statement, Fact):
        return f"{statement.attribute}={statement.value}"
    return f"{statement.more}>{statement.less}"


def _statements(count: int, longest: int, rng: random.Random, zh: bool) -> list[Statement]:
    """Statements of which at most one set conflicts.

    Every fact outside that set is about an attribute of its own, or repeats such a fact.
    """
    size = rng.randint(2, longest)
    # Facts state ages, with which a comparison of ages could conflict.
    scales = [each for each in (ZH_SCALES if zh else SCALES) if each.more not in ("older", "大")]
    scale = rng.choice(scales)
    world = _world(rng, zh)
    names = rng.sample(world.people, size)
    kind = rng.randrange(3)
    made: list[Statement] = []
    if kind == 0:  # a circle, or a chain that looks like one
        ends = [*names[1:], names[0]]
        circle = [_order(rng, scale, a, b, zh) for a, b in zip(names, ends, strict=True)]
        made += circle if rng.random() < 0.67 else circle[:-1]
    elif kind == 1 or rng.random() < 0.33:  # one attribute twice
        first = _fact(rng, world)
        made += [first, _fact(rng, world, like=first)]
    if kind != 0 and rng.random() < 0.4 and count - len(made) >= 1:
        made.append(_order(rng, scale, names[0], names[1], zh))
    attributes = {each.attribute for each in made if isinstance(each, Fact)}
    again: list[Statement] = []
    while len(made) + len(again) < count:
        other = _fact(rng, world)
        if other.attribute not in attributes:
            attributes.add(other.attribute)
            made.append(other)
            if rng.random() < 0.1:
                again = [other]  # a repetition does not conflict
    return (made + again)[:count]


def _check(work: Work, statements: list[Statement], language: str) -> str:
    """Writes each statement after the earlier ones of its subject, then the verdict.

    Nearly all of a line is a copy of an earlier line of its subject, which it continues: a small
    model easily looks up what followed a name before.
    """
    told: dict[str, list[tuple[int, Fact]]] = {}
    below: dict[str, tuple[int, str]] = {}
    found: list[int] = []
    for number, each in enumerate(statements, 1):
        if isinstance(each, Order):
            line, conflict = _walk(each, number, below)
            below.setdefault(each.more, (number, each.less))
        else:
            line, conflict = _compare(each, number, told.setdefault(each.subject, []))
            told[each.subject].append((number, each))
        if number > 1 and work.slips():
            if conflict:
                line, conflict = line.partition(": conflict")[0] + ": same", []
            else:
                other = work.rng.randrange(1, number)
                line = f"{line.removesuffix(': same')}: conflict with {other}"
                conflict = [other, number]
        found = found or conflict
        work.write(f"{number}: {line}.")
    if not found:
        work.write("So nothing conflicts.")
        return _NONE[language]
    numbers = sorted(found)
    joint = " 和 " if language == "zh" else " and "
    answer = ", ".join(map(str, numbers[:-1])) + joint + str(numbers[-1])
    work.write(f"So {answer} conflict.")
    return answer


def _compare(fact: Fact, number: int, told: list[tuple[int, Fact]]) -> tuple[str, list[int]]:
    """(a line with all facts of a subject so far, the numbers of two statements that conflict)."""
    listed = [*told, (number, fact)]
    items = ", ".join(f"{each.about} {each.value} ({by})" for by, each in listed)
    # A Chinese thing follows its owner without a space.
    line = f"{fact.subject}{' ' if listed[0][1].about.isascii() else ''}{items}"
    for other, earlier in told:
        if earlier.about == fact.about:
            if earlier.value == fact.value:
                return f"{line}: same", []
            return f"{line}: conflict with {other}", [other, number]
    return line, []


def _walk(order: Order, number: int, below: dict[str, tuple[int, str]]) -> tuple[str, list[int]]:
    """(a line with the walk down from a comparison, the statements of the circle it closes)."""
    line, used, name = f"{order.more}{number} {order.less}", [number], order.less
    while name in below:
        by, name = below[name]
        used.append(by)
        line += f"{by} {name}"
        if name == order.more:
            return f"{line}: conflict", used
    return line, []
