"""Answers in words: yes and no, the letter of a choice, names and phrases."""

import re

from marco_fast.search.reading.asked import Asked
from marco_fast.search.reading.plain import normal_text, numbers, sentences

__all__ = [
    "SHORT", "UNKNOWN", "choice_of", "is_symbolic", "items", "join", "likely", "said", "words_of",
    "yes_of",
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
UNKNOWN = re.compile(
    r"\b(?:unknown|undetermined|(?:can ?not|can't|could not|(?:impossible|unable|not possible) to)"
    r" (?:be )?(?:determined?|known?|say|tell|said|decided?|concluded?|answer(?:ed)?)"
    r"|(?:do not|don't) know|not (?:enough|sufficient) information|insufficient information)\b"
    r"|不知道|无法(?:确定|判断|得知)|不能(?:确定|判断)|不确定|未知",
    re.IGNORECASE,
)
_EXPRESSION = re.compile(r"[√π]|\d\s?[xyzn]\b(?!\s*=)|\d\s?\^")
_UNIT = re.compile(
    r"\s?(?:[ckm]?m|k?g|mg|m?l|s|h|in|ft|miles?|(?:kilo|centi)?met(?:er|re)s?|(?:kilo)?grams?"
    r"|pounds?|lit(?:er|re)s?|seconds?|minutes?|hours?|days?|weeks?|months?|years?(?: old)?"
    r"|degrees?|dollars?|euros?|cents?|yuan|usd|eur|inches|feet"
    r"|[个元块米克升秒天岁度]|美元|厘米|千米|公里|千克|公斤|分钟|小时|平方米|平方厘米)(?:\^[23])?",
    re.IGNORECASE,
)
SHORT = 200  # characters of a sentence that may be an answer with a few words around it


def is_symbolic(text: str) -> bool:
    """Whether a text is an expression that no number stands for: 5√3, 25π, 3x + 1."""
    return len(text) < SHORT and bool(_EXPRESSION.search(text))


def join(items: list[str], ordered: bool) -> str:
    """Several finals as one: a set, or in order."""
    return "; ".join(items) if ordered else ", ".join(sorted(set(items)))


def said(text: str) -> str:
    """A normal text, or the one word for what it says: yes, no, unknown, none."""
    normal = normal_text(text)
    return _SAID.get(normal.replace(",", ""), normal)


def likely(text: str, pointed: bool) -> list[str]:
    """The sentences that may hold the final, the likeliest first."""
    if pointed:
        return [text]
    parts = sentences(text)
    kept = [part for part in reversed(parts) if part[-1] not in "?？" and not _CLOSING.match(part)]
    return kept or parts[::-1]


_CLOSING = re.compile(
    r"^(?:i hope|hope|let me know|feel free|if you|would you|do you|please|note|check|checking"
    r"|to (?:check|verify)|verif|let's (?:check|verify)|let me (?:check|verify)"
    r"|i (?:have )?(?:double.)?check|great|good luck|is there|希望|如果|验证|检验|检查|注意)",
    re.IGNORECASE,
)


_WORD = re.compile(
    r"(?:so|thus|therefore|hence|所以|因此)?[\s,:]*(yes|no|是的|不是|否|对)"
    r"(?![a-z])(?! ?(?:and|or|和) )",
    re.IGNORECASE,
)


def yes_of(text: str, pointed: bool, asked: Asked) -> str:
    parts = likely(text, pointed)
    for part in [*parts[:1], *parts[-1:]]:
        word = _WORD.match(part)
        if word:
            return said(word[1])
        if UNKNOWN.search(part):
            return "unknown"
    return _echo(parts[0], asked.clause) or said(text) if parts else said(text)


def _echo(sentence: str, clause: str) -> str:
    """ "yes" for a sentence that says again what was asked, "no" for its negation, else ""."""
    if clause.isascii():
        told, asked = _words(sentence) - _FILLERS, _words(clause) - _FILLERS
        return {(): "yes", ("not",): "no"}.get(tuple(told - asked), "") if asked <= told else ""
    asked_text = re.sub(r"[\s吗?。,]", "", clause)
    told_text = re.sub(r"[\s。,]|^(?:所以|因此)", "", sentence)
    if told_text.replace("不是", "是") != asked_text.replace("是不是", "是"):
        return ""
    return "no" if "不是" in told_text else "yes"


_FILLERS = {"so", "thus", "therefore", "hence", "a", "an", "the", "also"}


def _words(text: str) -> set[str]:
    return set(re.findall(r"[\w']+", text.casefold().replace("n't", " not")))


_LETTER = re.compile(r"\(?([A-Ja-j])(?:\)|(?![\w'&]))")
_CHOSEN = re.compile(
    r"\b(?:options?|choices?|选项?|select|choose)\s*\(?([A-J])\b|\(([A-J])\)|选\s*([A-J])"
)


def choice_of(text: str, pointed: bool, asked: Asked) -> str:
    first = _LETTER.match(text)
    if first and (pointed or len(text) == first.end() or text[first.end() - 1] == ")"
                  or re.match(r"[.):、]|\s*$", text[first.end() :])):  # fmt: skip
        letters = [first[1].lower()]
        more = re.match(r"\s*(?:,|and|or|和|或)\s*\(?([A-J])\b", text[first.end() :])
        return join(letters + ([more[1].lower()] if more else []), False)
    for part in likely(text, pointed):
        found = [next(filter(None, each)) for each in _CHOSEN.findall(part)]
        if found:
            return found[-1].lower()
        normal = normal_text(part)
        held = [key for key, option in asked.options.items() if option and _holds(normal, option)]
        if len(held) == 1:
            return held[0]
    return said(text)


def _holds(text: str, phrase: str) -> bool:
    return bool(re.search(rf"(?<![a-z0-9]){re.escape(phrase)}(?![a-z0-9])", text))


_BECAUSE = re.compile(
    r",? (?:because|since|as it|as the|which|so that)\b|[,;] (?:not|and not) | \(|因为", re.I
)
_VERB = r"(?:is|are|was|were|be|has|lives|won|wins|equals)"


def words_of(text: str, pointed: bool, asked: Asked) -> str:
    parts = likely(text, pointed)
    whole = said(text)
    if whole in _SAID.values() or not parts:
        return whole
    if len(parts) > 1:
        part = next((each for each in parts if _answers(each, asked) is not None), None)
        if part is None:
            return whole
    else:
        part = _BECAUSE.split(parts[0])[0] if pointed else parts[0]
    return items(_answers(part, asked) or said(part), asked.ordered)


def items(text: str, ordered: bool) -> str:
    """A short list of words as a set, or in order; a number with its unit as the number."""
    found = numbers(text)
    if len(found) == 1 and found[0].begin == 0 and _UNIT.fullmatch(text[found[0].end :] or "m"):
        return found[0].text
    items = [said(each) for each in re.split(r"\s*[,;、]\s*(?:and )?|\s+(?:and|&)\s+|和", text)]
    if len(items) < 2 or not all(items) or any(len(each.split()) > 3 for each in items):
        return text
    return join(items, ordered or ";" in text)


def _answers(sentence: str, asked: Asked) -> str | None:
    """What a sentence adds to the words that ask; None if it does not say them again."""
    if len(sentence) > SHORT or not asked.clause:
        return None
    if UNKNOWN.search(sentence):
        return "unknown"
    clause = normal_text(asked.clause)
    if not clause.isascii():
        return _chinese(normal_text(sentence), clause)
    known = set(re.findall(r"[\w']+", clause)) | {
        "the",
        "a",
        "an",
        "it",
        "so",
        "is",
        "that",
        "therefore",
        "thus",
    }
    verb = re.search(rf"^(.*?)\b{_VERB}\b(.*)$", normal_text(sentence))
    if not verb:
        return None
    left, right = verb[1].strip(" ,"), verb[2].strip(" ,")
    if right and all(word in known for word in re.findall(r"[\w']+", left)):
        head, comma, tail = right.rpartition(", ")
        if comma and all(word in known for word in re.findall(r"[\w']+", tail)):
            right = head
        return said(right) or None
    if left and all(word in known for word in re.findall(r"[\w']+", right)):
        return said(re.sub(r"^(?:so|therefore|thus|hence),? ", "", left)) or None
    return None


def _chinese(sentence: str, clause: str) -> str | None:
    """The same for a sentence in Chinese, whose words are its characters."""
    sentence = re.sub("^(?:所以|因此|那么|答案是)[,，]?", "", sentence)
    rest = set(clause) | set("的是了那个人一位它他她们这")
    left, verb, right = sentence.partition("是")
    if verb and right and all(sign in rest for sign in left):
        return said(right) or None
    if verb and left and right and all(sign in rest for sign in right):
        return said(left) or None
    for begin in range(1, len(sentence) - 1):
        if sentence[begin:].rstrip("的了") in clause:
            return said(sentence[:begin]) or None
    return None
