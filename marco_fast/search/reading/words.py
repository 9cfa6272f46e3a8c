"""Numbers that are written in words, in English and Chinese."""

import re

__all__ = ["words_to_digits"]

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {word: value for value, word in enumerate(_ONES)}
_WORDS |= {word: 10 * value for value, word in enumerate(_TENS, 2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6}
_TIMES = {"once": "1 time", "twice": "2 times", "thrice": "3 times"}
_ANY = "|".join([*_WORDS, *_SCALES])
_RUN = re.compile(rf"\b(?:{_ANY})(?:(?:[\s-]+(?:and\s+)?)(?:{_ANY}))*\b", re.IGNORECASE)
_ONCE = re.compile(r"\b(?:once|twice|thrice)\b", re.IGNORECASE)
_HAN = {sign: value for value, sign in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_HAN_SCALES = {"十": 10, "百": 100, "千": 1000}
_HAN_RUN = re.compile("[零〇一二三四五六七八九十百千两]+")


def words_to_digits(text: str, noun: str) -> str:
    """A sentence with its number words as digits, where it has no digits.

    Args:
        text: a plain sentence.
        noun: what is counted, for words that are also something else (one, 一).
    """
    if any(sign.isdigit() for sign in text):
        return text
    text = _ONCE.sub(lambda found: _TIMES[found[0].lower()], text)
    text = _RUN.sub(lambda found: _english(found, text, noun), text)
    if text.isascii():
        return text
    return _HAN_RUN.sub(lambda found: _chinese(found, text, noun), text)


def _english(found: re.Match[str], text: str, noun: str) -> str:
    words = re.findall("[a-z]+", found[0].lower())
    if words == ["one"]:
        before, behind = text[: found.start()].split()[-1:], text[found.end() :].split()[:1]
        plain = behind and noun and behind[0].strip(".,!'\"").lower().rstrip("s") == noun
        known = " ".join(before).lower().strip(",")
        if not plain and known not in (
            "",
            "is",
            "are",
            "has",
            "have",
            "only",
            "exactly",
            "just",
            "=",
            "be",
        ):
            return found[0]
    if words[0] in _SCALES:
        return found[0]
    total = part = 0
    for word in words:
        if word in _WORDS:
            part += _WORDS[word]
        elif word == "hundred":
            part *= 100
        elif word in _SCALES:
            total, part = total + part * _SCALES[word], 0
    return str(total + part)


def _chinese(found: re.Match[str], text: str, noun: str) -> str:
    run = found[0]
    counted = text[: found.start()].endswith("百分之") or (
        noun and text[found.end() :].startswith(noun)
    )
    alone = not re.sub(r"[\s。.!]", "", text.replace(run, "", 1))
    if not (counted or alone) or run[0] in "百千":
        return run
    total = part = 0
    for sign in run:
        if sign in _HAN:
            part = _HAN[sign]
        else:
            total, part = total + (part or 1) * _HAN_SCALES[sign], 0
    return str(total + part)
