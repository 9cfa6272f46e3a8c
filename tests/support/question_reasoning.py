"""Answers of letters and logic questions, worked out from the text alone.

How a text is read is here as well: every sentence has to match one template of a table, with every
field in its role; any other sentence is an error, so that a changed template of the generator is
noticed.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

Table = list[tuple[str, str]]  # (template, what it means)
Fields = dict[str, str]
_FIELDS = {
    **dict.fromkeys("abcdefghkn", r"\d+"),
    **dict.fromkeys("pqrs", r"[A-Z][a-z]+|小\w|[他她]"),  # persons
    "t": r"[A-Z][a-z]+|s?he",  # a person after Then
    **dict.fromkeys("vw", r"[A-Z][a-z]+|[Tt]he [a-z]+|小\w|[^\W\d_a-zA-Z]"),  # persons, animals
    **dict.fromkeys("ij", "[a-z]+"),  # kinds
    **dict.fromkeys(("o", "x", "city"), r"[^\W\d_]+"),
    "adj": "[a-z]+|[高矮重轻快慢大小]",
    "color": "red|blue|green|yellow|black|white|brown|pink|[红蓝绿黄黑白]色?",
    **dict.fromkeys("my", r"[^\W\d_a-z]"),  # measure words
    "u": "cm|m|meters|feet|厘米|米",
    "box": "bags|baskets|boxes|jars|packs|trays",
    "l": r"[a-z]|'[a-z]'|\"[a-z]\"",
    "z": r"[A-Za-z ]+|'[A-Za-z ]+'|\"[A-Za-z ]+\"",
    "the": "the words |the word |",
    **dict.fromkeys(("costs", "some", "legs"), "[^.。]+"),
    "vehicle": "car|train|bus",
    "rank": "|second |third |fourth |fifth |最|第二|第三|第四|第五",
}


def table(text: str) -> Table:
    """The templates of lines `meaning: template | template`."""
    lines = [line.split(": ", 1) for line in text.strip().splitlines()]
    return [(each, meaning) for meaning, rest in lines for each in rest.split(" | ")]


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """The regular expression of a template; a field that comes again has the same value."""
    made, seen = "", set()
    for index, part in enumerate(re.split(r"\{(\w+)\}", template)):
        if index % 2 == 0:
            made += re.escape(part)
        else:
            made += f"(?P={part})" if part in seen else f"(?P<{part}>{_FIELDS[part]})"
            seen.add(part)
    return re.compile(made)


def read(
    sentence: str, table: Table, fits: Callable[[Fields], bool] = lambda fields: True
) -> tuple[str, Fields]:
    """(meaning, fields) by the one template that the sentence matches in fitting roles."""
    found = []
    for template, meaning in table:
        match = _pattern(template).fullmatch(sentence)
        if match and fits(match.groupdict()):
            found.append((meaning, match.groupdict()))
    assert len(found) == 1, (sentence, found)
    return found[0]


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with its end mark."""
    assert re.fullmatch(r"([^.?。？]+[.?。？])+", text), text
    return [each.strip() for each in re.findall(r"[^.?。？]+[.?。？]", text)]


_LETTERS = table("""
ask: How many times does the letter {l} occur in {the}{z}? | How many {l}s are in {z}?
ask: How many times is the letter {l} in {the}{z}? | How many {l} are in {z}?
ask: How many times does {l} appear in {z}? | How many letters {l} are there in {z}?
ask: How many {l}'s are there in {the}{z}? | How many letters {l} does {the}{z} contain?
ask: How many of the letters in {z} are {l}? | How often does {l} occur in {z}?
ask: How often does the letter {l} appear in {the}{z}? | Count the letter {l} in {the}{z}.
ask: Please count how many times the letter {l} is in {z}. | Count how often {l} occurs in {z}.
ask: What is the number of {l} in {the}{z}? | What is the count of the letter {l} in {z}?
ask: In {the}{z}, how many times does the letter {l} occur? | Count the {l} in {z}.
ask: In {z}, how many {l} are there? | Look at {the}{z}. How many {l} does it have?
ask: Tell me how many times {l} occurs in {the}{z}. | Find how many {l} there are in {z}.
ask: {z}: how many {l}? | {z} 里有几个字母 {l}？ | {z} 里有几个 {l}？
ask: 单词 {z} 中字母 {l} 出现了几次？ | 在单词 {z} 里，字母 {l} 出现多少次？
ask: 数一数 {z} 里有多少个 {l}。 | {z} 中有多少个字母 {l}？ | 请数出 {z} 中字母 {l} 的个数。
""")


def read_letters(text: str) -> tuple[str, list[str]]:
    """(letter, words in small letters) of a letters question."""
    _, fields = read(text, _LETTERS)
    words = fields["z"].strip("'\"").lower().split()
    named = fields.get("the", "").strip()
    assert named in ("", "the word" if len(words) == 1 else "the words"), text
    return fields["l"].strip("'\""), words


def letters_answer(text: str) -> str:
    letter, words = read_letters(text)
    return str("".join(words).count(letter))


_SCALES = [line.split() for line in """
tall taller tallest shorter shortest
old older oldest younger youngest
fast faster fastest slower slowest
heavy heavier heaviest lighter lightest
big bigger biggest smaller smallest
rich richer richest poorer poorest
strong stronger strongest weaker weakest
高 高 高 矮 矮
重 重 重 轻 轻
快 快 快 慢 慢
大 大 大 小 小
""".strip().splitlines()]  # fmt: skip
_AS = {scale[0]: (scale[0], 1) for scale in _SCALES}
THAN = {scale[at]: (scale[0], sign) for scale in _SCALES for at, sign in ((1, 1), (3, -1))}
_MOST = {scale[at]: (scale[0], sign) for scale in _SCALES for at, sign in ((2, 1), (4, -1))}
AGES = ("old", "大")
_ORDER = table("""
than: {v} is {adj} than {w}. | {v}比{w}{adj}。
as: {v} is not as {adj} as {w}. | {v}没有{w}{adj}。
noise: {v} lives in a {color} house. | {v} likes the color {color}. | {v} and {w} are friends.
noise: {v} met {w} yesterday. | All of them like music. | {v} has a {color} hat.
noise: {v}喜欢{color}色。 | {v}和{w}是朋友。 | {v}昨天见过{w}。 | 大家都喜欢音乐。
""")
_ORDER_ASK = table("""
ask: Who is the {rank}{adj}? | Who is the {rank}{adj} of them? | Who is the {rank}{adj} of all?
ask: Which one is the {rank}{adj}? | Name the {rank}{adj}. | Name the {rank}{adj} one.
ask: Find the {rank}{adj}. | 谁{rank}{adj}？ | {rank}{adj}的是谁？ | 他们之中谁{rank}{adj}？
ask: 找出{rank}{adj}的那一个。
""")
_RANKS = ("", "second ", "third ", "fourth ", "fifth "), ("最", "第二", "第三", "第四", "第五")


def compared(fields: Fields, forms: dict[str, tuple[str, int]]) -> tuple[str, str, str]:
    """(scale, who is more of it, who is less) of a sentence "v is adj than w"."""
    scale, sign = forms[fields["adj"]]
    v, w = (re.sub("^[Tt]he ", "", fields[key]) for key in "vw")
    return scale, *((v, w) if sign > 0 else (w, v))


def sort(pairs: set[tuple[str, str]]) -> list[str]:
    """The only order, from the most to the least, in which all pairs (more, less) hold."""
    order, names = [], {name for pair in pairs for name in pair}
    while names:
        tops = [name for name in names if not any((other, name) in pairs for other in names)]
        assert len(tops) == 1, (pairs, tops)
        order += tops
        names -= {*tops}
    return order


def read_ordering(text: str) -> tuple[str, list[tuple[str, str]]]:
    """(answer, the pairs (more, less) as the text gives them)."""
    *story, last = sentences(text)
    _, asked = read(last, _ORDER_ASK)
    scale, sign = _MOST[asked["adj"]]
    pairs, others = [], set()
    for sentence in story:
        meaning, fields = read(sentence, _ORDER)
        if meaning == "noise":
            others |= {re.sub("^[Tt]he ", "", fields[key]) for key in "vw" if key in fields}
            continue
        of, more, less = compared(fields, THAN if meaning == "than" else _AS)
        assert of == scale, text
        pairs.append((more, less) if meaning == "than" else (less, more))
    order = sort({*pairs})
    assert others <= {*order}, text
    rank = max(ranks.index(asked["rank"]) for ranks in _RANKS if asked["rank"] in ranks)
    return order[::sign][rank], pairs


_RULES = table("""
all: All {i}s are {j}s. | Every {i} is a {j}. | Each {i} is a {j}. | Any {i} is a {j}.
all: 所有的 {i} 都是 {j}。 | 每个 {i} 都是 {j}。 | 凡是 {i} 都是 {j}。
no: No {i} is a {j}. | No {i}s are {j}s. | 没有 {i} 是 {j}。 | {i} 都不是 {j}。
is: {p} is a {i}. | {p}是一个 {i}。
""")
_RULES_ASK = table("en: Is {p} a {i}?\nzh: {p}是 {i} 吗？")
_VERDICTS = {"en": ("yes", "no", "unknown"), "zh": ("是", "不是", "不知道")}


def kinds_above(kind: str, rules: list[tuple[str, str]]) -> set[str]:
    """Every kind that something of a kind belongs to."""
    found = {kind}
    while more := {b for a, b in rules if a in found} - found:
        found |= more
    return found


class Syllogism(NamedTuple):
    """What a text says, in its order: who or what is of a kind, what is not, and the answer."""

    answer: str
    person: str
    asked: str
    so: list[tuple[str, str]]
    apart: list[tuple[str, str]]


def read_syllogism(text: str) -> Syllogism:
    """A syllogism, after a look that no kind of it is empty."""
    *story, last = sentences(text)
    language, asked = read(last, _RULES_ASK)
    told: dict[str, list[tuple[str, str]]] = {"all": [], "no": [], "is": []}
    so = []
    for meaning, fields in (read(sentence, _RULES) for sentence in story):
        pair = (fields["p"], fields["i"]) if meaning == "is" else (fields["i"], fields["j"])
        told[meaning].append(pair)
        so += [pair] * (meaning != "no")
    rules, apart = told["all"], told["no"]
    [(person, kind_of_person)] = told["is"]
    assert person == asked["p"], text
    for kind in {kind for pair in rules + apart for kind in pair}:
        above = kinds_above(kind, rules)
        assert not any(a in above and b in above for a, b in apart), (text, kind)
    mine, theirs = kinds_above(kind_of_person, rules), kinds_above(asked["i"], rules)
    yes, no, unknown = _VERDICTS[language]
    denied = any((a in mine and b in theirs) or (b in mine and a in theirs) for a, b in apart)
    answer = yes if asked["i"] in mine else no if denied else unknown
    return Syllogism(answer, person, asked["i"], so, apart)


def logic_answer(text: str) -> str:
    syllogism = re.search(r"Is \w+ a \w+\?$|吗？$", text)
    return (read_syllogism if syllogism else read_ordering)(text)[0]
