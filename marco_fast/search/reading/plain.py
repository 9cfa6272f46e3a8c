"""Texts without their dress: markup, LaTeX and signs of many kinds, and the numbers in them."""

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

__all__ = ["PROSE", "Number", "listed", "normal_text", "numbers", "plain", "sentences"]

LONGEST = 40  # characters of a number that is worked out; of a longer one the digits are compared

PROSE = 1000  # characters of a text that is no phrase any more

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
# Signs that look alike, after Unicode's own compatibility forms.
_SIGNS = str.maketrans({
    **dict.fromkeys("−‐‑‒–—", "-"), **dict.fromkeys("‘’ʼ`´", "'"),
    **dict.fromkeys("“”„«»", '"'), **dict.fromkeys("×·⋅", "*"), **dict.fromkeys("⁄÷∕", "/"),
    "\u200b": "", "\ufeff": "",
})  # fmt: skip
_THIN_SPACE = re.compile("(?<=[0-9])[\u2009\u202f\xa0](?=[0-9]{3}(?![0-9]))")

_BRACED = r"\{([^{}]*)\}"
_LATEX = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"(?<=\d)(?:\{,\}|\\,)(?=\d{3}(?!\d))", ""),
        (r"\\[dtc]?frac\s*" + _BRACED + r"\s*" + _BRACED, r" (\1)/(\2) "),
        (r"\\[dtc]?frac\s*(\d)\s*(\d)", r" \1/\2 "),
        (r"\\sqrt\s*" + _BRACED, r"√(\1)"),
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|emph|operatorname)\s*"
         + _BRACED, r" \1 "),
        (r"\^?\s*\{?\s*\\(?:circ|degree)\b\s*\}?(?! *\$)", " degrees "),
        (r"\^?\s*\{?\s*\\(?:circ|degree)\b\s*\}?", " degrees"),
        (r"\^" + _BRACED, r"^\1"),
        (r"\\(?:left|right|displaystyle|dfrac)\b|\\[,;:!]|\\q?quad\b|\\[()\[\]]|\\\\", " "),
        (r"\\(?:times|cdot)\b", "*"), (r"\\div\b", "/"), (r"\\pi\b", "π"), (r"\\sqrt\b", "√"),
        (r"\\approx\b", "≈"), (r"\\pm\b", "±"),
        (r"\\(?:cap|cup|to|rightarrow|implies|Rightarrow)\b", " "),
        (r"\\([%$#&_{} ])", r"\1"),
    )
]  # fmt: skip
_MATH = re.compile(r"\$\$?(?!\s)([^$\n]+)(?<!\s)\$\$?(?!\d)")
_SIMPLE_FRACTION = re.compile(r"\((-?\d+)\)/\((\d+)\)")
_SIMPLE_ROOT = re.compile(r"√\((\w+)\)")
_MARKDOWN = [
    (re.compile(r"\*\*|__|~~|'''"), ""),
    (re.compile(r"(?m)^[ \t]*(?:#{1,6}[ \t]+|>[ \t]?)+"), ""),
    (re.compile(r"(?m)^[ \t]*[*+•-][ \t]+(?=\S)"), ""),
    (re.compile(r"(?<![\w*])\*(?![\s*])([^*\n]+)(?<!\s)\*(?![\w*])"), r"\1"),
]


def plain(text: str) -> str:
    """A text without markdown and LaTeX, with one sign for each of Unicode's families of signs."""
    if not text.isascii():
        text = _SUPERSCRIPT.sub(lambda found: "^" + found[0].translate(_SUPERSCRIPTS), text)
        text = _VULGAR.sub(lambda found: " " + unicodedata.normalize("NFKC", found[0]), text)
        text = _THIN_SPACE.sub("", text)
        text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
        text = re.sub(r"[^\W\D0-9]", lambda digit: str(unicodedata.digit(digit[0])), text)
    if "\\" in text or "{" in text:
        for _ in range(2):  # once more for what stood inside another's braces
            for pattern, new in _LATEX:
                text = pattern.sub(new, text)
        text = _SIMPLE_FRACTION.sub(r"\1/\2", text)
        text = _SIMPLE_ROOT.sub(r"√\1", text)
    if "±" in text:
        text = re.sub(r"±\s?(\d[\d.]*)", r"\1 or -\1", text)
    if "$" in text:
        text = _MATH.sub(r"\1", text)
    for pattern, new in _MARKDOWN:
        text = pattern.sub(new, text)
    return text.strip()


class Number(NamedTuple):
    """A number in a text.

    Attributes:
        text: its one form: 1234, -3, 0.5, 1/3, or 10:30 for a time or a ratio.
        begin, end: its characters in the text, with a currency or percent sign.
        percent, money: whether it has such a sign (or "percent").
    """

    text: str
    begin: int
    end: int
    percent: bool
    money: bool


_NUMBER = re.compile(
    r"""(?<![A-Za-z0-9_^\\]) (?<![0-9]\.) (?<!\^-)
    (?P<chinese>百分之)?
    (?P<sign>(?<![\w)\]%])[-+](?=[$€£¥.]?\d|[$€£¥]))?
    (?P<money>[$€£¥]\s?)? (?P<inner>[-+](?=\d))?
    (?:
      (?P<ratio>\d+(?::\d+)+)
      | (?P<mixed>\d+\s(?=\d+/\d))? (?P<top>\d+)/(?P<bottom>\d+)(?![\d/:]|\.\d)
      | (?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)
        (?:\s?[*x]\s?10\^(?P<power>-?\d{1,2})(?!\d)|[eE](?P<exponent>[-+]?\d{1,2})(?![\w.]))?
    )
    (?:\s?(?P<scale>thousand|million|billion|trillion|万|亿)(?![a-z]))?
    (?P<percent>\s?%|\s(?:percent|per\scent)\b)?""",
    re.VERBOSE | re.ASCII,
)
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12, "万": 4, "亿": 8}


def numbers(text: str) -> list[Number]:
    """The numbers of a plain text; digits inside names (H2O) and exponents (m^2) are none."""
    found = []
    for match in _NUMBER.finditer(text):
        percent = bool(match["percent"] or match["chinese"])
        found.append(Number(_form(match), *match.span(), percent, bool(match["money"])))
    return found


def _form(match: re.Match[str]) -> str:
    if match["ratio"]:
        return (
            ":".join(part.lstrip("0") or "0" for part in match["ratio"].split(":", 1)[:1])
            + (match["ratio"][match["ratio"].index(":") :])
        )
    minus = "-" if "-" in (match["sign"] or "") + (match["inner"] or "") else ""
    if len(match[0]) > LONGEST:
        digits = (match["digits"] or match["top"]).replace(",", "").lstrip("0")
        return minus + (digits or "0")
    if match["top"]:
        if not int(match["bottom"]):
            return minus + f"{match['top']}/{match['bottom']}"
        value = int(match["mixed"] or 0) + Fraction(int(match["top"]), int(match["bottom"]))
    else:
        power = int(match["power"] or match["exponent"] or 0)
        value = Fraction(match["digits"].replace(",", "")) * Fraction(10) ** power
    value *= 10 ** _SCALES.get(match["scale"] or "", 0)
    return shown(-value if minus else value)


def shown(value: Fraction) -> str:
    """A value's one form: as a decimal number where that ends, else as a fraction."""
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest > 1:
        return f"{value.numerator}/{value.denominator}"
    places = max(twos, fives)
    digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}}"
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[。！？；!?])|\n+")
_CJK = "\u3040-\u30ff\u3400-\u9fff"
_CJK_SPACE = re.compile(rf"(?<=[{_CJK}])\s+(?=\S)|(?<=\S)\s+(?=[{_CJK}])")
_ARTICLE = re.compile(r"^(?:(?:the|an?) (?!(?:and|or|,)\b)(?=\S))+")
_EDGES = " \t\r\n.,;:!?\"'*_~。！？、；…()[]{}<>|"
_PAIRS = {"(": ")", "[": "]", "{": "}"}


def sentences(text: str) -> list[str]:
    """The sentences and lines of a plain text that hold anything."""
    return [part.strip() for part in _END.split(text) if part.strip(_EDGES)]


def normal_text(text: str) -> str:
    """What two texts have in common that differ in dress, case, articles or edges alone."""
    text = " ".join(plain(text).casefold().split())
    text = _CJK_SPACE.sub("", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    old = None
    while old != text:
        old, text = text, _ARTICLE.sub("", _bare(text))
        if len(text) > PROSE:
            break  # a phrase has few layers, and a long text of them would take their square
    return text


def _bare(text: str) -> str:
    """Without punctuation at its edges; brackets go in pairs, or where they lack their other."""
    text = text.strip(" \t.,;:!?\"'*_~。！？、；…|<>")
    while text[:1] in _PAIRS and text[-1:] == _PAIRS[text[:1]] and _closed(text):
        text = text[1:-1].strip(_EDGES)
    return text


def _closed(text: str) -> bool:
    """Whether the bracket that opens a text is the one that its last character closes."""
    depth = 0
    for at, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0:
            return at == len(text) - 1
    return False


_JOINED = re.compile(
    r"(?:[\s,;、()\[\]{}]|\b(?:and|or|statements?|sentences?|numbers?|nos?\.|[a-z] ?=)"
    r"|[和与及或句第号])*",
    re.IGNORECASE,
)


def listed(text: str) -> list[str] | None:
    """The numbers of a text that is nothing but a list of two or more; else None."""
    found = numbers(text) if len(text) <= PROSE else []
    if len(found) < 2 or any(text[each.end : each.end + 1].isalpha() for each in found):
        return None
    rest, begin = [], 0
    for each in found:
        rest.append(text[begin : each.begin])
        begin = each.end
    rest.append(text[begin:].rstrip(" .。!"))
    return [each.text for each in found] if all(map(_JOINED.fullmatch, rest)) else None
