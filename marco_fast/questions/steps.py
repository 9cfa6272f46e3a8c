"""The step-by-step test: word problems in which every number is needed."""

import random
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from marco_fast.questions.draft import Accept, Draft
from marco_fast.questions.words import (
    NAMES_HE,
    NAMES_SHE,
    OBJECTS,
    ZH_NAMES_HE,
    ZH_NAMES_SHE,
    ZH_OBJECTS,
)
from marco_fast.questions.work import Work

# (parts of the story, largest number) of levels 1 to 8
_LEVELS = ((1, 9), (1, 20), (2, 20), (2, 40), (3, 60), (4, 99), (5, 99), (6, 99))
_BILLS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class _Story(NamedTuple):
    """A word problem: its text, the content that decides its split, and how it is worked out."""

    text: str
    content: list[object]
    solve: Callable[[Work], int]


def steps(level: int, rng: random.Random, accept: Accept, language: str) -> Draft:
    """A word problem about shopping, comparing, packing or travelling."""
    parts, largest = _LEVELS[level - 1]
    while True:
        scene = rng.choice((_shopping, _comparing, _packing, _travelling))
        text, content, solve_story = scene(parts, largest, rng, language == "zh")
        key = " ".join(map(str, [f"steps:{scene.__name__}", *content]))
        if accept(key):
            break

    def solve(work: Work) -> str:
        result = solve_story(work)
        work.write(f"The answer is {result}.")
        return str(result)

    return Draft(text, (key,), solve)


def _joined(items: list[str], zh: bool) -> str:
    """The items as one text: "a, b and c"."""
    if len(items) == 1:
        return items[0]
    return ("、" if zh else ", ").join(items[:-1]) + ("和" if zh else " and ") + items[-1]


def _people(rng: random.Random, zh: bool, count: int) -> list[str]:
    return rng.sample(ZH_NAMES_SHE + ZH_NAMES_HE if zh else NAMES_SHE + NAMES_HE, count)


def _things(rng: random.Random, zh: bool, count: int) -> list[tuple[str, str]]:
    """(measure word, thing) pairs; the English measure word is empty."""
    return rng.sample(ZH_OBJECTS, count) if zh else [("", o) for o in rng.sample(OBJECTS, count)]


def _sum_of_products(work: Work, parts: list[tuple[str, int, int]]) -> int:
    """Writes each part as label and a*b, and the sum so far after all but the first."""
    total = 0
    for index, (label, a, b) in enumerate(parts):
        line, product = work.scale(a, b)
        work.write(f"{label}{line}.")
        if index:
            line, total = work.add(total, product)
            work.write(f"{line}.")
        else:
            total = product
    return total


def _shopping(parts: int, largest: int, rng: random.Random, zh: bool) -> _Story:
    """Several things bought at different prices; asks for the cost or the change."""
    count = min(parts, 5)
    things = _things(rng, zh, count)
    prices = [rng.randint(2, largest) for _ in things]
    numbers = [rng.randint(2, 9) for _ in things]
    cost = sum(price * number for price, number in zip(prices, numbers, strict=True))
    paid = next(bill for bill in _BILLS if bill > cost) if rng.random() < 0.6 else 0
    [person] = _people(rng, zh, 1)
    rows = list(zip(things, prices, numbers, strict=True))
    if zh:
        costs = "，".join(f"{thing}每{m}{price}元" for (m, thing), price, _ in rows) + "。"
        buys = f"{person}买了{_joined([f'{n}{m}{thing}' for (m, thing), _, n in rows], zh)}"
        if paid:
            text = f"{costs}{buys}，付了{paid}元。应该找回多少元？"
        else:
            text = f"{costs}{buys}。" + rng.choice(("一共要付多少元？", "一共花了多少元？"))
    else:
        costs = _joined([f"{thing} cost {price} dollars each" for (_, thing), price, _ in rows], zh)
        buys = f"{person} buys {_joined([f'{n} {thing}' for (_, thing), _, n in rows], zh)}"
        if paid:
            ask = rng.choice(("How much change is that?", "How many dollars come back?"))
            text = f"{costs[0].upper() + costs[1:]}. {buys} and pays with {paid} dollars. {ask}"
        else:
            ask = rng.choice(("How many dollars is that?", "How much does it cost?"))
            text = f"{costs[0].upper() + costs[1:]}. {buys}. {ask}"

    def solve(work: Work) -> int:
        total = _sum_of_products(work, [(f"{thing}: ", p, n) for (_, thing), p, n in rows])
        if paid:
            line, total = work.subtract(paid, total)
            work.write(f"{line}.")
        return total

    return _Story(text, [person, paid, *prices, *numbers], solve)


def _comparing(parts: int, largest: int, rng: random.Random, zh: bool) -> _Story:
    """People who each have more, fewer or some times as many things as the person before."""
    people = _people(rng, zh, parts + 1)
    [(m, thing)] = _things(rng, zh, 1)
    start = value = rng.randint(2, largest)
    sentences = [f"{people[0]}有{start}{m}{thing}。" if zh else f"{people[0]} has {start} {thing}."]
    relations: list[tuple[str, int]] = []
    for before, person in pairwise(people):
        sign, number, value = _relation(value, largest, rng)
        relations.append((sign, number))
        form = (_ZH_RELATIONS if zh else _RELATIONS)[sign]
        sentences.append(form.format(a=person, b=before, n=number, m=m, o=thing))
    together = rng.random() < 0.5
    if zh:
        ask = "他们一共有多少{m}{o}？" if together else "{a}有多少{m}{o}？"
    else:
        ask = "How many {o} do they have together?" if together else "How many {o} does {a} have?"
    sentences.append(ask.format(a=people[-1], m=m, o=thing))

    def solve(work: Work) -> int:
        values = [start]
        work.write(f"{people[0]} {start}.")
        for person, (sign, number) in zip(people[1:], relations, strict=True):
            act = {"*": work.scale, "-": work.subtract, "+": work.add}[sign]
            line, result = act(values[-1], number)
            work.write(f"{person}: {line}.")
            values.append(result)
        return work.total(values) if together else values[-1]

    text = ("" if zh else " ").join(sentences)
    return _Story(text, [*people, start, *relations, together], solve)


# What {a} has, compared with what {b} has: {n} times as much, or {n} things ({o}) fewer or more.
_RELATIONS = {
    "*": "{a} has {n} times as many as {b}.",
    "-": "{a} has {n} fewer than {b}.",
    "+": "{a} has {n} more than {b}.",
}
_ZH_RELATIONS = {
    "*": "{a}的{o}是{b}的{n}倍。",
    "-": "{a}比{b}少{n}{m}。",
    "+": "{a}比{b}多{n}{m}。",
}


def _relation(value: int, largest: int, rng: random.Random) -> tuple[str, int, int]:
    """(sign, number, result) of the step from one person's value to the next person's."""
    roll, times, number = rng.random(), rng.randint(2, 5), rng.randint(1, largest)
    if roll < 0.3 and value * times < 300:
        return "*", times, value * times
    if roll < 0.6 and number < value:
        return "-", number, value - number
    return "+", number, value + number


def _packing(parts: int, largest: int, rng: random.Random, zh: bool) -> _Story:
    """Boxes of equal content; some things are taken away, and the rest is packed into bags."""
    each = rng.randint(2, largest)
    boxes, size = rng.randint(2, 9), rng.randint(2, 9)
    taken = _taken(boxes * each, size, min(parts, 4) - 1, rng)
    [(m, thing)], [person] = _things(rng, zh, 1), _people(rng, zh, 1)
    if (boxes * each - sum(taken)) % size:
        return _packing(parts, largest, rng, zh)
    if zh:
        text = f"{person}有{boxes}箱{thing}，每箱{each}{m}。"
        text += "".join(
            rng.choice((f"卖掉{n}{m}。", f"送掉{n}{m}。", f"坏了{n}{m}。")) for n in taken
        )
        text += f"{'剩下的' if taken else '全部'}每{size}{m}装一袋。一共装了几袋？"
    else:
        text = f"{person} has {boxes} boxes with {each} {thing} each."
        for n in taken:
            are = "is" if n == 1 else "are"
            text += " " + rng.choice(
                (f"{n} {are} sold.", f"{n} {are} lost.", f"{n} {are} given away.")
            )
        text += " The rest goes into" if taken else " All of them go into"
        text += f" bags of {size}. How many bags are filled?"

    def solve(work: Work) -> int:
        line, total = work.scale(each, boxes)
        work.write(f"{line}.")
        for number in taken:
            line, total = work.subtract(total, number)
            work.write(f"{line}.")
        line, bags = work.divide(total, size)
        work.write(f"{line}.")
        return bags

    return _Story(text, [boxes, each, *taken, size], solve)


def _taken(total: int, size: int, times: int, rng: random.Random) -> list[int]:
    """Numbers taken away one after the other; the last one, if possible, leaves full bags."""
    taken: list[int] = []
    for _ in range(times):
        number = rng.randint(1, max(1, total // 3))
        if number < total:
            taken.append(number)
            total -= number
    last = total % size
    if last and last < total:
        taken.append(last)
    return taken


def _travelling(parts: int, largest: int, rng: random.Random, zh: bool) -> _Story:
    """Hours at one or more speeds; asks for the way so far or the way that is left."""
    legs = [(rng.randint(3, max(9, largest)), rng.randint(2, 9)) for _ in range(min(parts, 5))]
    way = sum(speed * hours for speed, hours in legs)
    whole = way + rng.randint(1, 99) if rng.random() < 0.4 else 0
    if zh:
        text = "，再".join(f"以每小时{speed}千米走{hours}小时" for speed, hours in legs)
        text = f"一辆车{'先' if len(legs) > 1 else ''}{text}。"
        text += f"全程{whole}千米，还剩多少千米？" if whole else "一共走了多少千米？"
    else:
        text = ", then ".join(f"for {hours} hours at {speed} km an hour" for speed, hours in legs)
        text = f"A {rng.choice(('car', 'train', 'bus'))} goes {text}."
        text += f" The whole way is {whole} km. How many km are left?" if whole else (
            " How many km is that?"
        )  # fmt: skip

    def solve(work: Work) -> int:
        total = _sum_of_products(work, [("", speed, hours) for speed, hours in legs])
        if whole:
            line, total = work.subtract(whole, total)
            work.write(f"{line}.")
        return total

    return _Story(text, [whole, *legs], solve)
