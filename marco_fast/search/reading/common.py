"""What the readers of all kinds of answers share."""

import re

from marco_fast.search.reading.plain import PROSE, normal_text, sentences

__all__ = [
    "BECAUSE", "MEANINGS", "SHORT", "UNIT", "UNKNOWN", "expression", "is_symbolic", "join",
    "likely", "said",
]  # fmt: skip

_SAID = {
    word: meaning
    for meaning, words in {
        "yes": "yes|yeah|yep|true|correct|是|是的|对|对的|正确|会|能|可以",
        "no": "no|nope|false|incorrect|不是|不是的|否|不对|不|错|错误|不会|不能|不可以",
        "unknown": "unknown|undetermined|uncertain|not known|不知道|未知|不确定|无法确定|不能确定",
        "none": "none|nothing|no contradictions|no contradiction|没有|无|没有矛盾|都不矛盾|不矛盾",
    }.items()
    for word in words.split("|")
}
MEANINGS = ("yes", "no", "unknown", "none")
UNKNOWN = re.compile(
    r"\b(?:unknown|undetermined|(?:can ?not|can't|could not|(?:impossible|unable|not possible) to)"
    r" (?:be )?(?:determined?|known?|say|tell|said|decided?|concluded?|answer(?:ed)?)"
    r"|(?:do not|don't) know|not (?:enough|sufficient) information|insufficient information)\b"
    r"|不知道|无法(?:确定|判断|得知)|不能(?:确定|判断)|不确定|未知",
    re.IGNORECASE,
)
_EXPRESSION = re.compile(
    r"[√π]|\d\s?[xyzn]\b(?!\s*=)|\d\s?\^"
    r"|\b[xyzn]\s?[-+*/^]\s?\d|\d[a-z]\s?[-+]\s?\d|\b[a-z]\s?[-+]\s?\d?[a-z]\b|\d\s?[-+*/]\s?[xyzn]\b(?!\s*=)"
)
UNIT = (
    r"(?:[ckm]?m|k?g|mg|m?l|s|h|in|ft|miles?|(?:kilo|centi)?met(?:er|re)s?|(?:kilo)?grams?"
    r"|pounds?|lit(?:er|re)s?|seconds?|minutes?|hours?|days?|weeks?|months?|years?(?: old)?"
    r"|degrees?|dollars?|euros?|cents?|yuan|usd|eur|inches|feet"
    r"|[个元块米克升秒天岁度]|美元|厘米|千米|公里|千克|公斤|分钟|小时|平方米|平方厘米)(?:\^[23])?"
)
BECAUSE = re.compile(
    r",? (?:because|since|as it|as the|which|so that)\b|[,;] (?:not|and not) | \(|因为",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"^(?:i hope|hope|let me know|feel free|if you|would you|do you|please|note|check|checking"
    r"|to (?:check|verify)|verif|let's (?:check|verify)|let me (?:check|verify)"
    r"|i (?:have )?(?:double.)?check|great|good luck|is there|希望|如果|验证|检验|检查|注意)",
    re.IGNORECASE,
)
SHORT = 200  # characters of a sentence that may be an answer with a few words around it


def is_symbolic(text: str) -> bool:
    """Whether a text is an expression that no number stands for: 5√3, 25π, 3x + 1."""
    return len(text) < SHORT and bool(_EXPRESSION.search(text))


def expression(text: str) -> str:
    """An expression without spaces and without a unit."""
    normal = normal_text(text)
    unit = re.search(rf"\s(?:{UNIT})$", normal)
    return "".join((normal[: unit.start()] if unit else normal).split())


def join(items: list[str], ordered: bool) -> str:
    """Several finals as one: a set, or in order."""
    return "; ".join(items) if ordered else ", ".join(sorted(set(items)))


def said(text: str) -> str:
    """A normal text, or the one word for what it says: yes, no, unknown, none."""
    normal = normal_text(text)
    return _SAID.get(normal.replace(",", ""), normal)


def likely(text: str, pointed: bool) -> list[str]:
    """The sentences that may hold the final, the likeliest first; of a long one its end."""
    if pointed:
        return [text]
    parts = [part[-PROSE:] for part in sentences(text)]
    kept = [part for part in reversed(parts) if part[-1] not in "?？" and not _CLOSING.match(part)]
    return kept or parts[::-1]
