"""What a question asks for: a number, several, yes or no, a letter of a choice, or words."""

import re
from dataclasses import dataclass, field
from functools import lru_cache

from marco_fast.search.reading.plain import normal_text, plain, sentences

__all__ = ["Asked", "asked_of"]

_MANY = re.compile(r"how many|how often|多少|(?<![哪期周])几(?![乎何])", re.IGNORECASE)
_QUANTITIES = (
    "sum|product|difference|quotient|total|numbers? of|count|area|perimeter|volume|average|mean"
    "|median|value|price|costs?|angle|length|width|height|distance|age|probability|percent(?:age)?"
    "|remainder|speed|weight|circumference|radius|diameter|square root|fraction|ratio|time|amount"
    "|profit|change|number|population|temperature|mass|capacity|score|rate|year"
)
_NUMBER = re.compile(
    r"how (?:many|much|often|long|far|old|tall|large|big|high|wide|deep|fast|heavy|hot|cold)\b"
    r"|\b(?:count|calculate|compute|evaluate|simplify|expand|factor(?:i[sz]e)?|add|subtract|multiply|divide)\b"
    r"|\b(?:what|find|determine|give|which|work out|tell me)\b[^.?!\n]{0,60}?"
    rf"\b(?:{_QUANTITIES})\b"
    r"|what(?:'s| is| are) [-(]?\d|\d\s?[-+*/^]\s?\d+\s?(?:=|\?|$)"
    r"|多少|(?<![哪期周])几(?![乎何])|多[大长远高重久]|[请试]?求|计算|等于|数一数|数出|面积|周长|第.个角",
    re.IGNORECASE | re.MULTILINE,
)
_PERCENT = re.compile(r"percent|per cent|\d\s?%\?|what %|百分", re.IGNORECASE)
_LISTS = "statements|sentences|numbers|roots|solutions|factors|divisors|primes|multiples|values"
_SEVERAL = re.compile(
    r"\bwhich (?:of (?:them|these|the)|statements?|sentences?|numbers|ones|are|two|three|pairs?)\b"
    rf"|\b(?:name|find|list|give|identify|write) (?:all|(?:\w+ ){{0,3}}?(?:{_LISTS}))\b"
    rf"|\bwhat are (?:\w+ ){{0,3}}?(?:{_LISTS})\b|\bsolve\b|哪些|哪几|找出.*的话|列出|写出所有",
    re.IGNORECASE,
)
_ORDER = re.compile(
    r"\b(?:order|sort|rank|arrange|sequence|ascending|descending)\b|从.{1,3}到|排序|排列|顺序",
    re.IGNORECASE,
)
_YES_NO = re.compile(
    r"^(?:so |then |and |but |now |, )*(?:is|are|was|were|do|does|did|can|could|will|would|has"
    r"|have|had|should|must|may|am)\b(?!.*\bor\b)"
    r"|yes or no|true or false|吗|是否|是不是|有没有|对不对|能不能",
    re.IGNORECASE,
)
_WHAT_IS_IT = re.compile(
    r"\bwhat (?:is|was|will) (?:it|this|that)(?: be)?(?: now| then| today| in the end)?\W*$", re.I
)
_LENGTH = r"(?:[ckm]?m|met|kilomet|centimet|miles?|feet|foot|ft|inch|yards?)"
_UNITS = dict.fromkeys(("far", "tall", "high", "wide", "deep"), _LENGTH + r"(?![a-z]*/)")
_UNITS |= {
    "old": r"(?:years?|months?|weeks?|days?)\b(?! older| younger| ago)",
    "heavy": "(?:k?g|gram|kilo|pound|lb|ton)",
}
_RATE = re.compile(r"\b(?:per|each|every|an?) (second|minute|hour|day|week|month|year)\b", re.I)
_SPEED = re.compile(r"\b(?:speed|how fast|unit (?:rate|price))\b|速度", re.IGNORECASE)
_ASKING = re.compile(
    r"\b(?:who|whose|whom|which|what|where|when|name|find|tell|identify)\b|谁|哪|什么|找出|说出",
    re.IGNORECASE,
)
_OPTION = re.compile(r"(?:^|(?<=[\s,;。，；?？:：]))\(?([A-J])[).:、．]\s*(?=\S)")
_NOUN_STOP = re.compile(
    r"(?i)^(?:do|does|did|are|is|were|was|will|can|could|has|have|had|in|of|there|would|should|to|at"
    r"|on|with|for|from|left|per|a|an|the|now|does|he|she|they|it|you|we|i)$"
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What a question asks for.

    Attributes:
        kind: "number", "several" (a list of numbers), "yes", "choice", or "text".
        noun: what is counted, in lower case without a plural's s; "" where that is not said.
        percent, money, ordered: whether a percentage, an amount of money, an order is asked for.
        options: the options of a choice, by their letter.
        unit: a pattern of the units that fit "how far" and "how old"; "" for others.
        compares: whether it asks how many more.
        rate: a pattern of "per day", where it asks for so much a day; "" for others.
        clause: the words that ask, for texts. alternatives: "A or B", where a text asks for one.
    """

    kind: str
    noun: str = ""
    percent: bool = False
    money: bool = False
    ordered: bool = False
    options: dict[str, str] = field(default_factory=dict)
    unit: str = ""
    compares: bool = False
    rate: str = ""
    clause: str = ""
    alternatives: tuple[str, ...] = ()


@lru_cache(maxsize=256)  # every path of a tree answers one question
def asked_of(question: str) -> Asked:
    """What a question asks for, by a few words of English and Chinese; "text" where none is there.

    The last sentence decides, and where it says nothing of numbers, all of them.
    """
    text = plain(question[-4000:])
    parts = sentences(text) or [""]
    last = parts[-1]
    if not ("?" in last or _SEVERAL.search(last) or _NUMBER.search(last) or _ASKING.search(last)):
        last = next((part for part in reversed(parts) if "?" in part), last)
    options = {found[1].lower(): found for found in _OPTION.finditer(text)}
    ordered = bool(_ORDER.search(text))
    if len(options) > 1 and list(options)[:2] == ["a", "b"]:
        return Asked("choice", options=_options(text, list(options.values())))
    if not _MANY.search(last) and _SEVERAL.search(last):
        return Asked("several", ordered=ordered, clause=_clause(last))
    if _YES_NO.search(last) and not _NUMBER.search(last):
        return Asked("yes", clause=last)
    it = _WHAT_IS_IT.search(last) and re.search(r"\d", text)
    if (it or _NUMBER.search(last)) and not re.search(
        r"\b(?:who|whose|where|why|when)\b|谁", last, re.I
    ):
        money = bool(re.search(r"how much|[$€£¥]|dollar|cost|price|元", last, re.IGNORECASE))
        percent = bool(_PERCENT.search(last))
        far = re.search(r"how (far|tall|high|wide|deep|old|heavy)\b", last, re.IGNORECASE)
        compares = bool(
            re.search(r"\b(?:more|less|fewer|difference|times)\b|便宜|比|省", last, re.I)
        )
        unit = _UNITS[far[1].lower()] if far else ""
        return Asked(
            "number", _noun(last), percent, money, ordered, unit=unit, compares=compares,
            rate=_rate(last),
        )  # fmt: skip
    clause = _clause(last)
    either = re.search(r"(?:^|, )([^,?]{1,60}) or ([^,?]{1,60})(?:\?|$)", clause)
    return Asked(
        "text", ordered=ordered, clause=clause, alternatives=either.groups() if either else ()
    )


def _rate(sentence: str) -> str:
    """A pattern of what stands behind a number that says how much a day; "" where none is asked."""
    per = _RATE.search(sentence)
    if per:
        return rf"(?: \w+)?(?: ?/| (?:per|each|every|an?)) ?{per[1].lower()}\b"
    return r" ?[a-z]*(?: ?/ ?| per )[a-z]" if _SPEED.search(sentence) else ""


def _options(text: str, found: list[re.Match[str]]) -> dict[str, str]:
    ends = [each.start() for each in found[1:]] + [len(text)]
    return {
        each[1].lower(): normal_text(text[each.end() : end].split("\n")[0])
        for each, end in zip(found, ends, strict=True)
    }


def _clause(sentence: str) -> str:
    """The part of a sentence that asks: from its last question word on, else all of it."""
    found = list(_ASKING.finditer(sentence))
    if not found or not found[0][0].isascii():  # Chinese asks in the middle of the sentence
        return (
            re.split("[,。]", sentence.rstrip("。?!"))[-1] if not sentence.isascii() else sentence
        )
    return sentence[found[0].start() :]


def _noun(sentence: str) -> str:
    """What "how many" and 多少 count: the word, or the measure word, behind them."""
    found = re.search(r"how many ((?:[\w'-]+ ?){1,5})", sentence, re.IGNORECASE)
    if found:
        words = []
        for word in found[1].split():
            if _NOUN_STOP.match(word):
                break
            words.append(word)
        return stem(words[-1]) if words else ""
    chinese = re.search(r"(?:多少|几)([^\W\d_a-zA-Z])", sentence)
    return chinese[1] if chinese and chinese[1] not in "的是呢了" else ""


def stem(word: str) -> str:
    """A word in lower case without a plural's or a possessive's end."""
    word = word.casefold()
    for end in ("'s", "es", "s"):
        if word.endswith(end) and len(word) > len(end) + (2 if end == "es" else 0):
            return word[: -len(end)] if end != "es" or word[-3] in "sxzh" else word[:-1]
    return word
