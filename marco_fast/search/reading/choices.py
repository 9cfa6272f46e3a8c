"""Answers that choose: yes or no, or the letter of an option."""

import re

from marco_fast.search.reading.asked import Asked
from marco_fast.search.reading.common import BECAUSE, UNKNOWN, join, likely, said
from marco_fast.search.reading.plain import normal_text

__all__ = ["choice_of", "yes_of"]

_WORD = re.compile(
    r"(?:^|\b(?:so|thus|therefore|hence),? |所以|因此)[\s,:]*(?:the answer is )?"
    r"(yes|no|是的|不是|否|对)"
    r"(?![a-z])(?! ?(?:and|or|和) )(?! (?:idea|one|information|way)\b)"
    r"|^(?:that|this|it)(?:'s| is) (not )?(?:correct|true|right)\b",
    re.IGNORECASE,
)


def yes_of(text: str, pointed: bool, asked: Asked) -> str:
    """ "yes", "no" or "unknown"; else the words."""
    parts = likely(text, pointed)
    for part in [*parts[:1], *parts[-1:]]:
        word = _WORD.search(part)
        if word:
            return said(word[1]) if word[1] else "no" if word[2] else "yes"
        if UNKNOWN.search(part):
            return "unknown"
    return (_echo(parts[0], asked.clause) if parts else "") or said(text)


def _echo(sentence: str, clause: str) -> str:
    """ "yes" for a sentence that says again what was asked, "no" for its negation, else ""."""
    sentence = BECAUSE.split(sentence)[0]
    if clause.isascii():
        if sentence.casefold().split()[:1] == clause.casefold().split()[:1]:
            return ""  # the question itself
        told, asked = _words(sentence) - _FILLERS, _words(clause) - _FILLERS
        again = asked <= told
        if told & _PRONOUNS and len(told & asked) > 1:  # one word for all of the subject
            told, again = told - _PRONOUNS, clause.casefold().split()[0] in told
        return {(): "yes", ("not",): "no"}.get(tuple(told - asked), "") if again else ""
    asked_text = re.sub(r"[\s吗?。,]", "", clause)
    told_text = re.sub(r"[\s。,]|^(?:所以|因此)", "", sentence)
    if told_text.replace("不是", "是") != asked_text.replace("是不是", "是"):
        return ""
    return "no" if "不是" in told_text else "yes"


_PRONOUNS = {"it", "he", "she", "they", "this", "that"}
_FILLERS = {"so", "thus", "therefore", "hence", "a", "an", "the", "also"}


def _words(text: str) -> set[str]:
    return set(
        re.findall(r"[\w']+", text.casefold().replace("n't", " not").replace("cannot", "can not"))
    )


_LETTER = re.compile(r"\(?([A-Ja-j])(?:\)|(?![\w'&]))")
_BEHIND_LETTER = re.compile(r"[.):、]|\s*$|\s*(?:,|and|or|&|和|或)\s*\(?[A-J]\b")
_ONE_MORE = re.compile(r"\s*(?:,|and|or|&|和|或)\s*\(?([A-J])\b")
_CHOSEN = re.compile(
    r"\b(?i:options?|choices?|select|choose|pick)\s*\(?([A-J])\b|\(([A-J])\)|选项?\s*([A-J])"
    r"|\b(?:so|therefore|thus),? \(?([B-J])\b"
)
_PAIR = re.compile(r"\(([A-J])\)\s*(?:and|or|&|和|或)\s*\(([A-J])\)")
_NOT = re.compile(r"\b(?:not?|n't)\b|不", re.IGNORECASE)


def choice_of(text: str, pointed: bool, asked: Asked) -> str:
    """The letter of the option that answers, in lower case, or several; else the words."""
    first = _LETTER.match(text)
    if first and (pointed or first[0][-1] == ")" or _BEHIND_LETTER.match(text, first.end())):
        more = _ONE_MORE.match(text, first.end())
        return join([each[1].lower() for each in (first, more) if each], False)
    for part in likely(text, pointed):
        pairs = _PAIR.findall(part)
        if pairs:
            return join([each.lower() for each in pairs[-1]], False)
        found = [next(filter(None, each)) for each in _CHOSEN.findall(part)]
        if found:
            return found[-1].lower()
        normal = normal_text(part)
        held = [key for key, option in asked.options.items() if option and _holds(normal, option)]
        if len(held) == 1 and not _NOT.search(part):
            return held[0]
    return said(text)


def _holds(text: str, phrase: str) -> bool:
    return bool(re.search(rf"(?<![a-z0-9]){re.escape(phrase)}(?![a-z0-9])", text))
