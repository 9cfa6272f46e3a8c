"""Answers in words: a name or a phrase, and the sentences that say it."""

import re
from functools import partial

from marco_fast.search.reading.asked import Asked
from marco_fast.search.reading.common import BECAUSE, MEANINGS, SHORT, UNIT, UNKNOWN, likely, said
from marco_fast.search.reading.common import join as joined
from marco_fast.search.reading.plain import normal_text, numbers

__all__ = ["items", "words_of"]

_UNIT = re.compile(rf"\s?(?:{UNIT})", re.IGNORECASE)
_VERB = re.compile(r"^(.*?)\b(?:is|are|was|were|be|has|lives|equals)\b(.*)$")
_FILLERS = set("the a an it its is are was were that so therefore thus hence then".split())
_FILLERS |= set("one of today now he she they".split())
_BEHIND = re.compile(r"\b(?:in|of|on|among|at|from|than|for|to|by)\b.*$")
_APPOSITION = re.compile(r"^([^,]+), (?:the|an?|who) [^,]+$")
_WHEN = re.compile(
    r",? (?:in|around|about|during|between) (?:the )?(?:early|late|mid)?[ -]?"
    r"(?:\d{1,2}(?:st|nd|rd|th)|\d{3,4}s?|\w+teenth|twentieth)\b.*$"
)
_DAY = re.compile(
    r"(?:on )?(?:an? )?((?:mon|tues|wednes|thurs|fri|satur|sun)day"
    r"|january|february|march|april|may|june|july|august|september|october|november|december)"
)
_SO = re.compile(r"^(?:(?:so|therefore|thus|hence|then)\b,? ?|(?:所以|因此|那么)[,，]?)")


def words_of(text: str, pointed: bool, asked: Asked) -> str:
    """The words that answer; all words of a text of which no sentence answers."""
    whole, parts = said(text), likely(text, pointed)
    if whole in MEANINGS or not parts:
        return whole
    if len(parts) > 1:
        told = next(filter(None, (_added(each, asked) for each in parts)), None)
        return items(told, asked.ordered) if told else whole
    part = BECAUSE.split(parts[0])[0] if pointed else parts[0]
    return items(_added(part, asked) or said(_without_apposition(part)), asked.ordered)


def items(text: str, ordered: bool) -> str:
    """A short list of words as a set, or in order; a number with its unit as the number."""
    if len(text) > SHORT:
        return text
    found = numbers(text)
    if len(found) == 1 and found[0].begin == 0 and _UNIT.fullmatch(text[found[0].end :] or "m"):
        return found[0].text
    parts = [said(each) for each in re.split(r"\s*[,;、]\s*(?:and )?|\s+(?:and|&)\s+|和", text)]
    if len(parts) < 2 or not all(parts) or any(len(each.split()) > 3 for each in parts):
        return text
    return joined(parts, ordered or ";" in text)


def _without_apposition(text: str) -> str:
    return _APPOSITION.sub(r"\1", normal_text(text)) if len(text) < SHORT else text


def _added(sentence: str, asked: Asked) -> str:
    """What a sentence adds to the words that ask; "" if it does not say them again."""
    if len(sentence) > SHORT or not asked.clause:
        return ""
    if UNKNOWN.search(sentence):
        return "unknown"
    clause, text = normal_text(asked.clause), _SO.sub("", normal_text(sentence))
    if not clause.isascii():
        return said(_added_in_chinese(text, clause))
    known = _words(clause) | _FILLERS
    if clause.startswith("who "):
        doer = re.fullmatch(r"(.+?) " + r" ".join(map(re.escape, clause.split()[1:])), text)
        if doer:
            return said(doer[1])
    verb = _VERB.match(text)
    if not verb:
        return ""
    left, right = (BECAUSE.split(each)[0].strip(" ,") for each in verb.groups())
    if not clause.startswith("when"):
        right = _WHEN.sub("", right)
    if re.match(r"(?:what|which) (?:day|month)\b", clause) and (day := _DAY.fullmatch(right)):
        return day[1]
    choices = [normal_text(each) for each in asked.alternatives]
    for each in choices:
        if left == each and _words(right) & (_words(clause) - _FILLERS - _words(" ".join(choices))):
            return said(each)
    if right and _words(_BEHIND.sub("", left)) <= known:
        if clause.startswith(("where", "when")):
            right = re.sub(r"^(\w+ )?(?:in|at|on|from|to) ", partial(_place, known), right)
        head, comma, tail = _without_apposition(right).rpartition(", ")
        return said(
            re.sub(
                r"^\w+ by ", "", head if comma and _words(tail) <= known else head + comma + tail
            )
        )
    said_again = _words(_BEHIND.sub("", right))
    return said(left) if left and said_again <= known and said_again - _FILLERS else ""


def _place(known: set[str], found: re.Match[str]) -> str:
    """Nothing in place of "located in", if the question asks so; else what is there."""
    return "" if not found[1] or found[1].strip() in known else found[0]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[\w']+", text))


def _added_in_chinese(sentence: str, clause: str) -> str:
    """The same for Chinese, whose words are not told apart."""
    rest = set(clause) | set("的是了那个人一位它他她们这作者")
    left, verb, right = sentence.partition("是")
    if verb and right and set(left) <= rest:
        return right
    if verb and left and right and set(right) <= rest:
        return left
    for begin in range(1, len(sentence) - 1):
        if sentence[begin:].rstrip("的了") in clause:
            return sentence[:begin]
    return ""
