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
_SURE = {"only", "exactly", "just"}
_LIKELY = {*_SURE, "", "is", "are", "has", "have", "be", "="}
_HAN = {sign: value for value, sign in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_HAN_SCALES = {"十": 10, "百": 100, "千": 1000}
_HAN_RUN = re.compile("[零〇一二三四五六七八九十百千两]+")


_PART = re.compile("([零〇一二三四五六七八九十两]+)分之([零〇一二三四五六七八九十两]+)")
_SHARES = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6}
_SHARES |= {"seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10, "twelfth": 12, "twentieth": 20}
_SHARE = re.compile(rf"\b({'|'.join(_WORDS)})[\s-]({'|'.join(_SHARES)})s?\b", re.IGNORECASE)
_BELOW = re.compile(r"(?<![-\d.])(\d[\d.]*(?: degrees?)?(?: \w+)?) below zero\b", re.IGNORECASE)
_MINUS = re.compile(r"(?<!\d )\b(?:negative|minus) (?=\d)|(?:零下|负)(?=\d)", re.IGNORECASE)
_HALF = re.compile(r"(\d) and a half\b", re.IGNORECASE)


def words_to_digits(text: str, noun: str) -> str:
    """A sentence with its number words as digits.

    Args:
        text: a plain sentence.
        noun: what is counted. In a sentence with digits a word is a number only in front of it, or
            behind "only" and the like; and "one" and 一 are hardly ever numbers otherwise.
    """
    digits = any(sign.isdigit() for sign in text)
    if not digits:
        text = _ONCE.sub(lambda found: _TIMES[found[0].lower()], text)
        text = _SHARE.sub(_fraction, text)
    text = _RUN.sub(lambda found: _english(found, text, noun, digits), text)
    text = _HALF.sub(r"\1.5", text)
    if not text.isascii():
        text = _PART.sub(lambda found: f"{_value(found[2])}/{_value(found[1])}", text)
        text = _HAN_RUN.sub(lambda found: _chinese(found, text, noun), text)
    return _MINUS.sub("-", _BELOW.sub(r"-\1", text))


def _fraction(found: re.Match[str]) -> str:
    """Five eighths as 5/8."""
    return f"{_WORDS[found[1].lower()]}/{_SHARES[found[2].lower()]}"


def _english(found: re.Match[str], text: str, noun: str, digits: bool) -> str:
    words = re.findall("[a-z]+", found[0].lower())
    if words == ["one"] or digits:
        before, behind = text[: found.start()].split()[-1:], text[found.end() :].split()[:1]
        plain = behind and noun and behind[0].strip(".,!'\"").lower().rstrip("s") == noun
        known = " ".join(before).lower().strip(",")
        if not plain and known not in (_SURE if digits else _LIKELY):
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
    return str(_value(run))


def _value(run: str) -> int:
    """The value of Chinese numerals."""
    total = part = 0
    for sign in run:
        if sign in _HAN:
            part = _HAN[sign]
        else:
            total, part = total + (part or 1) * _HAN_SCALES[sign], 0
    return total + part
