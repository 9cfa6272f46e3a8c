"""Answers to questions that ask for a number, or for several."""

import re
from fractions import Fraction

from marco_fast.search.reading.asked import Asked, stem
from marco_fast.search.reading.phrases import (
    SHORT,
    UNKNOWN,
    is_symbolic,
    join,
    likely,
    said,
    words_of,
)
from marco_fast.search.reading.plain import Number, normal_text, numbers, shown
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
_OF = re.compile(r"\s*(?:\w+ )?(?:out )?of (?:the |all |his |her |their )?", re.IGNORECASE)


def number_of(text: str, pointed: bool, asked: Asked) -> str:
    if pointed and is_symbolic(text) and "=" not in text:
        return "".join(normal_text(text).split())
    for part in likely(text, pointed):
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
    dropped = {
        index
        for index, each in enumerate(found)
        if (index and _OF.fullmatch(part[found[index - 1].end : each.begin]))
        or re.search(r"\bnot\s*$|不是$", part[max(0, each.begin - 8) : each.begin], re.IGNORECASE)
    }
    left = [each for index, each in enumerate(found) if index not in dropped] or found
    sign = max(part.rfind("="), part.rfind("≈"))
    behind = [each for each in left if each.begin > sign]
    if sign >= 0 and re.match(r"\s*[\d.]+\s*[-+*/]\s*[\d.]", part[sign + 1 :]):
        behind = [each for each in left if each.begin < sign][-1:]
    at_sign = sign >= 0 and bool(behind)
    left = behind if at_sign else left
    fitting = [each for each in left if _fits(part, each, asked)] or left
    chosen = fitting[0] if pointed or at_sign else fitting[-1]
    index = found.index(chosen)
    group = [chosen]
    for other in (index - 1, index + 1):
        if 0 <= other < len(found):
            first, second = found[min(other, index)], found[max(other, index)]
            if _OR.fullmatch(part[first.end : second.begin]):
                group.append(found[other])
    return join([_value(each, asked) for each in group], False)


def _fits(part: str, number: Number, asked: Asked) -> bool:
    """Whether a number has the sign or the noun of what is asked for."""
    if (asked.percent and number.percent) or (asked.money and number.money):
        return True
    behind = part[number.end : number.end + 60].lstrip(" '\"")
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
    for part in likely(text, pointed):
        if _NONE.search(part) and re.search("contradict|conflict|矛盾", part):
            return "none"
        found = numbers(part)
        labelled = [n for run in _LABELLED.findall(part) for n in numbers(run)]
        if found:
            chosen = labelled or found
            return join([each.text for each in chosen], asked.ordered)
    if _NONE.search(text[-SHORT:]):
        return "none"
    return words_of(text, pointed, asked)
