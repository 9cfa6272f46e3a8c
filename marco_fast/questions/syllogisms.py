"""Syllogisms: whether a person is of a kind, by rules about invented kinds."""

import random
from itertools import pairwise
from typing import NamedTuple

from marco_fast.questions.draft import Accept, Draft
from marco_fast.questions.words import KINDS, NAMES_HE, NAMES_SHE, ZH_NAMES_HE, ZH_NAMES_SHE
from marco_fast.questions.work import Work

_ANSWERS = {"en": ("yes", "no", "unknown"), "zh": ("是", "不是", "不知道")}
_ALL = ("All {a}s are {b}s.", "Every {a} is a {b}.", "Each {a} is a {b}.", "Any {a} is a {b}.")
_NO = ("No {a} is a {b}.", "No {a}s are {b}s.")
_ZH_ALL = ("所有的 {a} 都是 {b}。", "每个 {a} 都是 {b}。", "凡是 {a} 都是 {b}。")
_ZH_NO = ("没有 {a} 是 {b}。", "{a} 都不是 {b}。")


class _Statement(NamedTuple):
    """`a` is a `b`, or is none; `a` is a kind or the person."""

    text: str
    a: str
    b: str
    positive: bool


def syllogism(level: int, rng: random.Random, accept: Accept, language: str) -> Draft:
    """Asks whether a person is of a kind: yes, no, or unknown if the text does not say."""
    zh = language == "zh"
    hops = max(1, level - 1)
    sidetracks = (level + 1) // 2
    while True:
        kinds = rng.sample(KINDS, hops + 1 + 2 * sidetracks)
        person = rng.choice(ZH_NAMES_SHE + ZH_NAMES_HE if zh else NAMES_SHE + NAMES_HE)
        key = f"syllogisms:{person} " + " ".join(kinds[: hops + 1])
        if accept(key):
            break
    asked, said = _statements(rng, kinds[: hops + 1], kinds[hops + 1 :], zh)
    first = f"{person}是一个 {kinds[0]}。" if zh else f"{person} is a {kinds[0]}."
    said.append(_Statement(first, person, kinds[0], True))
    rng.shuffle(said)
    ask = f"{person}是 {asked} 吗？" if zh else f"Is {person} a {asked}?"
    text = ("" if zh else " ").join([*(each.text for each in said), ask])

    def solve(work: Work) -> str:
        work.write(f"Is {person} {asked}?")
        up = {each.a: each.b for each in said if each.positive}
        work.write_rows("Is:", [f"{a} {b}" for a, b in up.items()], 3)
        nots = [(each.a, each.b) for each in said if not each.positive]
        return _follow(work, person, asked, up, nots, _ANSWERS[language])

    return Draft(text, (key,), solve)


def _statements(
    rng: random.Random, chain: list[str], rest: list[str], zh: bool
) -> tuple[str, list[_Statement]]:
    """(the kind asked for, the statements about kinds) of a syllogism.

    Args:
        chain: kinds of which each is of the next kind.
        rest: two further kinds per sidetrack.
    """
    rules = list(pairwise(chain))
    no: tuple[str, str] | None = None
    verdict = rng.randrange(3)  # 0: yes, 1: no, 2: unknown
    if verdict == 0:
        asked = rng.choice(chain[1:])
    elif verdict == 1:
        asked = rest[0]
        no = (rng.choice(chain), asked)
    else:
        asked = rest[0]
    # A rule that leads into the chain or runs beside it says nothing about members of the chain.
    for index in range(len(rest) // 2):
        a, b = rest[2 * index], rest[2 * index + 1]
        rules.append((a, rng.choice(chain)) if verdict == 2 and index == 0 else (b, a))
    said = [
        _Statement(rng.choice(_ZH_ALL if zh else _ALL).format(a=a, b=b), a, b, True)
        for a, b in rules
    ]
    decoy = (rest[1], rng.choice(chain)) if rng.random() < 0.5 else None
    for a, b in filter(None, (no, decoy)):
        text = rng.choice(_ZH_NO if zh else _NO).format(a=a, b=b)
        said.append(_Statement(text, a, b, False))
    return asked, said


def _follow(
    work: Work,
    person: str,
    asked: str,
    up: dict[str, str],
    nots: list[tuple[str, str]],
    answers: tuple[str, str, str],
) -> str:
    """Writes the denied rules, the walk from the person along the rules, and the verdict.

    Args:
        asked: the kind asked for, at which the walk ends.
        up: {a: b} of the rules "every a is a b". nots: (a, b) of the rules "no a is a b".
        answers: the words for yes, no and unknown.
    """
    ruled_out, row = set(), []
    for a, b in nots:
        hit = (b == asked) != work.slips()
        if hit:
            ruled_out.add(a)
        row.append(f"{a} not {b} asked" if hit else f"{a} not {b}")
    work.write(f"No: {', '.join(row) or 'none'}.")
    walk = [person]
    while walk[-1] != asked and walk[-1] in up:
        after = up[walk[-1]]
        if work.slips():
            after = work.rng.choice([kind for kind in up.values() if kind != after])
        if after in walk:
            raise ValueError(f"expected another kind than those of the walk, got {after}")
        walk.append(after)
    reached = walk[-1] == asked
    work.write(f"So: {' '.join(walk)}{' asked' if reached else ''}.")
    yes, no, unknown = answers
    found = yes if reached else no if ruled_out.intersection(walk) else unknown
    work.write(f"So {found}.")
    return found
