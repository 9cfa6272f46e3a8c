"""Statements of which some cannot all be true: read from the text, and answered again."""

import re
from collections.abc import Iterator

from tests.support.question_reasoning import AGES, THAN, compared, read, table

_SAID = table("""
color: The {x} is {color}. | {x}是{color}的。
age: {p} is {n} years old. | {p}今年{n}岁。
count: {p} has {n} {o}. | {p}有{n}{m}{o}。
home: {p} lives in {city}. | {p}住在{city}。
opens: The {x} opens at {n}. | {x}{n}点开门。
than: {v} is {adj} than {w}. | {v}比{w}{adj}。
""")
_SAID_ASK = table("""
en: Which statements contradict each other? | Which of these statements contradict each other?
en: Which of them cannot all be true? | Find the statements that contradict each other.
en: Is there a contradiction? Name the statements.
zh: 哪些话互相矛盾？ | 哪几句话互相矛盾？ | 找出互相矛盾的话。 | 哪些话不能都是真的？
""")
_JOINTS = {"en": ("none", " and "), "zh": ("没有", " 和 ")}
Edges = dict[int, tuple[str, str, str]]  # number of the statement: (scale, more, less)


def read_statements(text: str) -> tuple[str, dict[int, tuple[tuple[str, str], str]], Edges]:
    """(language, ((subject, what of it), value) of the facts, the comparisons)."""
    facts, orders, at, number = {}, {}, 0, 0
    while match := re.compile(r"(\d+)\. (.*?[.。]) ").match(text, at):
        at, number = match.end(), number + 1
        assert int(match[1]) == number, text
        meaning, fields = read(match[2], _SAID)
        if meaning == "than":
            orders[number] = compared(fields, THAN)
            assert orders[number][0] not in AGES, text
        else:
            value = fields.get("n") or fields.get("color") or fields["city"]
            facts[number] = (fields.get("p") or fields["x"], fields.get("o", meaning)), value
    return read(text[at:], _SAID_ASK)[0], facts, orders


def _circles(orders: Edges, path: list[int]) -> Iterator[frozenset[int]]:
    """The circles of comparisons of a scale that go on from a path and begin at its smallest."""
    scale, begin, _ = orders[path[0]]
    end = orders[path[-1]][2]
    if end == begin:
        yield frozenset(path)
        return
    passed = {orders[number][2] for number in path[:-1]}
    for number, (of, more, _) in orders.items():
        if of == scale and more == end and number > path[0] and end not in passed:
            yield from _circles(orders, [*path, number])


def contradictions_answer(text: str) -> str:
    """The one smallest set of statements that cannot all be true; there must not be two."""
    language, facts, orders = read_statements(text)
    found = {circle for number in orders for circle in _circles(orders, [number])}
    for number, (slot, value) in facts.items():
        found |= {
            frozenset((before, number))
            for before, (other, said) in facts.items()
            if before < number and other == slot and said != value
        }
    assert len(found) <= 1, (text, found)
    none, joint = _JOINTS[language]
    if not found:
        return none
    *front, last = map(str, sorted(found.pop()))
    return ", ".join(front) + joint + last
