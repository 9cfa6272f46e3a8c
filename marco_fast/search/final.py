"""Finals: the part of an answer that votes, agreement and grading compare.

`final_of` takes the last \\boxed{...}; else what follows the last "the answer is", "answer:",
答案是 or ####; else, where the question asks for a number, the last number; else the whole text. Of
an answer that has a part inside <answer> it reads that part alone.
Two answers that say the same have equal finals, so that a final is a key.

- Numbers: 1,234 is 1234.0, 0.5 is 1/2 and \\frac{1}{2}, two million is 2000000. Nothing is rounded.
- 50% is 50% where a percentage is asked for, and 0.5 elsewhere.
- Units and currencies are not compared: "$18", "18 dollars" and 18 美元 are 18.
- Several numbers are a set, unless the question asks for an order or they are a tuple, (3, 5).
- Yes, no, unknown and none have one word each in English and Chinese.
"""

import contextlib
import re
from collections.abc import Callable
from fractions import Fraction

from marco_fast.search.reading.amounts import number_of, several_of
from marco_fast.search.reading.asked import Asked, asked_of
from marco_fast.search.reading.choices import choice_of, yes_of
from marco_fast.search.reading.common import is_symbolic, join, said
from marco_fast.search.reading.phrases import items, words_of
from marco_fast.search.reading.plain import (
    PROSE,
    listed,
    normal_text,
    numbers,
    plain,
    sentences,
    shown,
)

__all__ = ["FinalFunction", "agree", "final_of"]

FinalFunction = Callable[[str, str], str]
"""(answer, question) -> what is compared with other answers to the question, as a text."""


def final_of(answer: str, question: str) -> str:
    """What an answer says, in a form that equals that of every answer that says the same.

    Args:
        answer: of a reply, as its format has it.
        question: the text that it answers.

    Returns:
        The final; "" for an answer that holds nothing. The final of a final is itself. An answer
        of prose, whose question asks for nothing shorter, is its own final.
    """
    asked, final = asked_of(question), answer
    for _ in range(MOST_READINGS):
        old, final = final, read(final, asked)
        if final == old or len(final) > PROSE:
            break
    return final


def agree(final: str, reference: str) -> bool:
    """Whether a final says what a reference says.

    Args:
        final: from final_of, or from a FinalFunction of the caller's.
        reference: the right answer as somebody wrote it: "18", "$18", "#### 18", "Jane", "(B)".
    """
    return final in readings(reference) or normal_text(final) in readings(reference)


_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?=\d|[A-Z]\b))")
_CUE = re.compile(
    r"(?<![a-z])answers?(?: to [^.:\n]{1,80}?)?(?:\s*,[^,\n]{1,30},)?\s*"
    r"(?:(?:is|are|was|would be|should be|must be|will be|equals|=)(?![a-z])\s*:?|:)"
    r"|^(?:the )?(?:final |correct )?answer\s*$|^final result\s*:"
    r"|答案\s*(?:应该|应当|应|就)?\s*(?:是|为|等于|:)|(?:^|(?<=[\s。,;]))答\s*:",
    re.IGNORECASE | re.MULTILINE,
)
_TAGGED = re.compile(
    r"<(answer|final_answer|output|result)>((?:(?!<\1>).)*?)</\1>", re.IGNORECASE | re.DOTALL
)
_HASHES = re.compile(r"####[ \t]*([^\n]+)\s*\Z")
_CORRECTION = re.compile(
    r"\b(?:wait|actually|correction|on second thoughts?|let me re\w+|sorry"
    r"|(?:made|my|is|was) (?:a |an |some )?(?:mistakes?|errors?)"
    r"|that(?:'s| is) (?:wrong|not right|incorrect))\b|不对|等一下|等等|我错了|更正|重新",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(
    r"(?<!not )(?<!n't )\b(?:correct|right|yes|matches|confirms?|indeed|verified)\b|正确|没错",
    re.IGNORECASE,
)
READERS = {
    "number": number_of,
    "several": several_of,
    "yes": yes_of,
    "choice": choice_of,
    "text": words_of,
}
MOST_READINGS = 9  # two for nearly every answer: one that reads it, one that finds no more to do
MOST_CUES = 50  # at the end of an answer; an endless loop holds no more answers than that
LONGEST_BOX = 500


def explicit(answer: str) -> tuple[str, bool]:
    """(the plain text that holds the final, whether the answer itself points to it)."""
    told = [found[2] for found in _TAGGED.finditer(answer[-PROSE:]) if found[2].strip()]
    answer = told[-1] if told else answer
    box = _last_box(answer)
    if box is not None:
        text, rest = plain(box[0]), plain(answer[box[1] :])
    else:
        hashes = _HASHES.search(answer)
        whole = plain(answer)
        text, rest = (plain(hashes[1]), "") if hashes else _behind_cue(whole)
        if not text:
            return whole, bool(told) and len(sentences(whole)) == 1
    wrong = _CORRECTION.search(rest)
    if wrong and not _CONFIRMED.search(rest, wrong.start()) and re.search(r"\w", rest):
        return rest[wrong.start() :], False
    return text, True


def _last_box(answer: str) -> tuple[str, int] | None:
    """(content, end) of the last box that is closed and holds anything."""
    for found in reversed(list(_BOXED.finditer(answer))[-MOST_CUES:]):
        depth, begin = found[0].endswith("{") * 1, found.end()
        if not depth:
            return re.match(r"\S+", answer[begin:])[0], begin  # type: ignore[index]  # it has one
        for end in range(begin, min(len(answer), begin + LONGEST_BOX)):
            depth += (answer[end] == "{") - (answer[end] == "}")
            if not depth:
                if answer[begin:end].strip():
                    return answer[begin:end], end + 1
                break
    return None


def _behind_cue(text: str) -> tuple[str, str]:
    """(the sentence behind the last cue that has one, the text behind that sentence)."""
    for cue in reversed(list(_CUE.finditer(text))[-MOST_CUES:]):
        parts = sentences(text[cue.end() : cue.end() + 2000])
        if parts and re.search(r"\w", parts[0]):
            at = text.index(parts[0], cue.end())
            return parts[0].lstrip(": "), text[at + len(parts[0]) :]
    return "", ""


def read(answer: str, asked: Asked) -> str:
    """The final of an answer to a question that asks for this."""
    text, pointed = explicit(answer)
    listing = listed(text)
    if listing and not (asked.kind == "number" and "\n" in text):
        return join(listing, asked.ordered or _is_tuple(text))
    return READERS[asked.kind](text, pointed, asked)


def _is_tuple(text: str) -> bool:
    return bool(re.fullmatch(r"\s*\([^()]*\)[\s.]*", text)) or ("; " in text and "," not in text)


_LETTER = re.compile(r"\s*(?:\(([A-Ja-j])\)|([A-J])(?:[).:]|\s*$))")


def readings(reference: str) -> set[str]:
    """Every final that says what a reference says; its question is not known here."""
    text, _ = explicit(reference)
    normal, found, listing = said(text), numbers(text[:PROSE]), listed(text)
    made = (
        {normal, "".join(normal.split())}
        if is_symbolic(text)
        else {normal, items(normal, False), items(normal, True)}
    )
    if listing:
        made |= {join(listing, False), join(listing, True)}
    elif len(found) == 1 and not is_symbolic(text):
        number = found[0]
        made |= {number.text, number.text + "%"}
        with contextlib.suppress(ValueError, ZeroDivisionError):  # too long to be worked out
            value = Fraction(number.text)
            made |= {shown(value / 100)} if number.percent else {shown(value * 100) + "%"}
    letter = _LETTER.match(text)
    if letter:
        made.add((letter[1] or letter[2]).lower())
    return made
