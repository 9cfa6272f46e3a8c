"""Answers to questions that ask for a number, or for several."""

import re
from fractions import Fraction
from itertools import pairwise

from marco_fast.search.reading.asked import Asked, stem
from marco_fast.search.reading.common import (
    SHORT,
    UNKNOWN,
    expression,
    is_symbolic,
    join,
    likely,
    said,
)  # fmt: skip
from marco_fast.search.reading.phrases import words_of
from marco_fast.search.reading.plain import Number, numbers, shown
from marco_fast.search.reading.words import words_to_digits

__all__ = ["number_of", "several_of"]

_NONE = re.compile(
    r"\b(?:no|not|none|nothing|neither|never|(?:do|does|is|are|can)n't)\b[^.,;]{0,40}\b(?:contradict|conflict)"
    r"|\bnone\b|^no\b|^nothing\b|没有|不矛盾|不存在|^无",
    re.IGNORECASE,
)
_ZERO = re.compile(
    r"\b(?:there (?:is|are) no|(?:has|have|contains?|with) no|zero|none)\b|没有", re.I
)
_LABELLED = re.compile(
    r"(?:\b(?:statements?|sentences?|claims?|nos?\.|options?)\s*#?|第)\s*"
    r"(\d+(?:\s?(?:,|and|or|&|,\s?and|和|与|及|、|句|条)+\s?(?:statements?\s|第)?\d+)*)",
    re.IGNORECASE,
)
_OR = re.compile(r"\s*(?:\w+\s)?(?:or|或|或者)\s*|[-~]")
# What stands in front of, or behind, a number that is not the answer.
_TOTAL = re.compile(r"\s*(?:\w+ )?(?:out )?of (?:the |all |his |her |their )?", re.IGNORECASE)
_BUT_NOT = re.compile(
    r"(?:\bnot|不是|(?:which is|that is|i\.e\.|or|,) (?:about|approximately|roughly|around))\s*$",
    re.IGNORECASE,
)
_RATE = re.compile(
    r"\s?(?:\w+ )?(?:per|each|every|an?)\b(?! total| half)|\s?[a-z]*/[a-z]", re.IGNORECASE
)
_SO = re.compile(r"\b(?:so|therefore|thus|hence|leaving)\b|所以|因此", re.IGNORECASE)
_MORE = re.compile(r" (?:\w+ )?(?:more|less|fewer|times|older|younger|cheaper) ", re.IGNORECASE)
_MORE_IN_CHINESE = re.compile(r"(?:比[^,。;比]{0,12}[多少贵大小高低长短重轻]|便宜|节省|省)了?\s*$")
_REASON = re.compile(r"[,;(](?!\d)|\b(?:which|because|since|as)\b|因为", re.IGNORECASE)
_SUM = re.compile(r"\s*[\d.]+(?:\s*[-+*]\s*|\s+/\s+)[\d.]")
# What a sentence may end with: 2x + 6, where 6 is not the answer.
_FORMULA = re.compile(r"(?<![\w.])(?:[-+\d.√π^()/*\s]|(?<![a-zA-Z])[a-z](?![a-zA-Z]))+$")
_TIMES = re.compile(r"\d\s?x\s?\d|\d\s[a-mo-w]")  # or a unit
_TOKEN = re.compile(r"(?<!\w)[-\d.√π^()/*]{0,30}(?:[√π]|\d\^\d)[-\d√π^()/*]{0,30}")


def number_of(text: str, pointed: bool, asked: Asked) -> str:
    """The number that answers; else what the text says in words."""
    if is_symbolic(text) and "=" not in text and (pointed or " " not in text):
        return expression(text)
    for part in likely(text, pointed):
        formula = _FORMULA.search(part.rstrip(" .。!"))
        if formula and is_symbolic(formula[0]) and not _TIMES.search(formula[0]):
            return expression(formula[0])
        part = words_to_digits(part, asked.noun)
        found = numbers(part)
        if found:
            return _pick(part, found, pointed, asked)
    if UNKNOWN.search(text):
        return "unknown"
    if not pointed and _ZERO.search(text[-SHORT:]):
        return "0"
    return said(text)


def _pick(part: str, found: list[Number], pointed: bool, asked: Asked) -> str:
    """The number among a sentence's that answers."""
    rates = [each for each in found if asked.rate and re.match(asked.rate, part[each.end :], re.I)]
    left, first = (rates, False) if rates else _left(part, found, pointed)
    if not asked.compares:
        left = [
            each
            for each in left
            if not _MORE.match(part, each.end)
            and not _MORE_IN_CHINESE.search(part[max(0, each.begin - 20) : each.begin])
        ] or left
    fitting = [each for each in left if _fits(part, each, asked)] or left
    chosen = fitting[0 if first or pointed else -1]
    for token in _TOKEN.finditer(part):
        if token.start() <= chosen.begin < token.end():
            return expression(token[0])
    group, index = [chosen], found.index(chosen)
    for other in (index - 1, index + 1):
        if 0 <= other < len(found):
            one, two = found[min(other, index)], found[max(other, index)]
            if _OR.fullmatch(part[one.end : two.begin]):
                group.append(found[other])
    return join([_value(each, asked) for each in group], False)


def _left(part: str, found: list[Number], pointed: bool) -> tuple[list[Number], bool]:
    """(the numbers that may answer, whether the first of them does and not the last)."""
    gaps = [part[one.end : two.begin] for one, two in pairwise(found)]
    left = [
        each
        for each, gap in zip(found, ["", *gaps], strict=True)
        if not _TOTAL.fullmatch(gap)
        and not _BUT_NOT.search(part[max(0, each.begin - 30) : each.begin])
    ] or found
    left = [each for each in left if not _RATE.match(part[each.end : each.end + 30])] or left
    so = max((each.end() for each in _SO.finditer(part)), default=0)
    left = [each for each in left if each.begin >= so] or left
    sign = max(part.rfind("="), part.rfind("≈"))
    if sign < 0 or (pointed and _REASON.search(part[left[0].end : sign])):
        return left, False
    if _SUM.match(part[sign + 1 : sign + 40]):  # 8 = 3 + 5
        before = [each for each in left if each.begin < sign]
        return (before[-1:], True) if before else (left, False)
    behind = [each for each in left if each.begin > sign]
    return (behind, True) if behind else (left, False)


def _fits(part: str, number: Number, asked: Asked) -> bool:
    """Whether a number has the sign or the noun of what is asked for."""
    if (asked.percent and number.percent) or (asked.money and number.money):
        return True
    behind = part[number.end : number.end + 60].lstrip(" '\"-")
    if asked.unit:
        return bool(re.match(asked.unit, behind, re.IGNORECASE))
    if asked.noun and not asked.noun.isascii():
        return behind.startswith(asked.noun)
    words = re.split(r"[^\w'-]+", behind)[:3]
    return bool(asked.noun) and any(stem(word.strip("'")) == asked.noun for word in words)


def _value(number: Number, asked: Asked) -> str:
    if asked.percent:
        return number.text + "%"
    if number.percent:
        try:
            return shown(Fraction(number.text) / 100)
        except ValueError:  # too long to be worked out
            return number.text + "%"
    return number.text


def several_of(text: str, pointed: bool, asked: Asked) -> str:
    """The numbers that answer; "none"; else what the text says in words."""
    for part in likely(text, pointed):
        if _NONE.search(part) and re.search("contradict|conflict|矛盾", part):
            return "none"
        behind = part[max((each.end() for each in _SO.finditer(part)), default=0) :]
        part = behind if numbers(behind) else part
        found = numbers(part)
        labelled = [n for run in _LABELLED.findall(part) for n in numbers(run)]
        if found:
            chosen = labelled or found
            return join([each.text for each in chosen], asked.ordered)
    if _NONE.search(text[-SHORT:]):
        return "none"
    return words_of(text, pointed, asked)
