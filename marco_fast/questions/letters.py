"""The letters test ("strawberry"): how often a letter occurs in words."""

import random

from marco_fast.questions.draft import Accept, Draft
from marco_fast.questions.words import WORDS
from marco_fast.questions.work import Work

# (words, fewest and most letters per word) of levels 1 to 8
_LEVELS = (
    (1, 3, 5), (1, 5, 8), (1, 7, 11), (1, 10, 15), (2, 6, 10), (3, 6, 11), (4, 6, 12), (5, 7, 13),
)  # fmt: skip

_PHRASES = (
    "How many times does the letter {c} occur in {w}?",
    "How many times does the letter {c} occur in {the} {w}?",
    "How many times does {c} appear in {w}?",
    "How many times is the letter {c} in {the} {w}?",
    "How many {c} are in {w}?",
    "How many {c}'s are there in {the} {w}?",
    "How many {c}s are in {w}?",
    "How many letters {c} are there in {w}?",
    "How many letters {c} does {the} {w} contain?",
    "How many of the letters in {w} are {c}?",
    "How often does {c} occur in {w}?",
    "How often does the letter {c} appear in {the} {w}?",
    "Count the letter {c} in {the} {w}.",
    "Count the {c} in {w}.",
    "Count how often {c} occurs in {w}.",
    "Please count how many times the letter {c} is in {w}.",
    "What is the number of {c} in {the} {w}?",
    "What is the count of the letter {c} in {w}?",
    "In {the} {w}, how many times does the letter {c} occur?",
    "In {w}, how many {c} are there?",
    "Look at {the} {w}. How many {c} does it have?",
    "Tell me how many times {c} occurs in {the} {w}.",
    "Find how many {c} there are in {w}.",
    "{w}: how many {c}?",
)
_ZH_PHRASES = (
    "{w} 里有几个字母 {c}？",
    "{w} 里有几个 {c}？",
    "单词 {w} 中字母 {c} 出现了几次？",
    "在单词 {w} 里，字母 {c} 出现多少次？",
    "数一数 {w} 里有多少个 {c}。",
    "{w} 中有多少个字母 {c}？",
    "请数出 {w} 中字母 {c} 的个数。",
)


def _word(rng: random.Random, shortest: int, longest: int, accept: Accept) -> str:
    """An accepted word with the wanted number of letters: real, spliced of two, or random."""
    while True:
        kind = rng.random()
        if kind < 0.3:
            word = rng.choice(WORDS)
        elif kind < 0.8:
            first, second = rng.choice(WORDS), rng.choice(WORDS)
            word = first[: rng.randint(1, len(first))] + second[rng.randint(0, len(second) - 1) :]
        else:
            letters = rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8))
            word = "".join(rng.choices(letters, k=rng.randint(shortest, longest)))
        if shortest <= len(word) <= longest and accept(f"letters:{word}"):
            return word


def letters(level: int, rng: random.Random, accept: Accept, language: str) -> Draft:
    """A question about how often a letter occurs in one to five words."""
    count, shortest, longest = _LEVELS[level - 1]
    words = [_word(rng, shortest, longest, accept) for _ in range(count)]
    joined = "".join(words)
    roll = rng.random()
    if roll < 0.45:
        letter = max(sorted(set(joined)), key=lambda c: (joined.count(c), rng.random()))
    elif roll < 0.88:
        letter = rng.choice(joined)
    else:
        letter = rng.choice("abcdefghijklmnopqrstuvwxyz")
    shown = [word.capitalize() if rng.random() < 0.06 else word for word in words]
    quote, mark = rng.choice(("", "", "", "'", '"')), rng.choice(("", "", "", "'", '"'))
    phrase = rng.choice(_ZH_PHRASES if language == "zh" else _PHRASES)
    if "{c}s" in phrase or "{c}'s" in phrase:
        mark = ""
    the = "the word" if count == 1 else "the words"
    text = phrase.format(c=mark + letter + mark, w=quote + " ".join(shown) + quote, the=the)
    if not text.startswith(words[0]):
        text = text[0].upper() + text[1:]

    def solve(work: Work) -> str:
        total = 0
        work.write(f"Count the letter {letter}.")
        for word in words:
            for begin in range(0, len(word), 8):
                spelled = []
                for char in word[begin : begin + 8]:
                    total += (char == letter) != (work.slips())
                    spelled.append(f"{char}{total}")
                work.write(" ".join(spelled))
        work.write(f"So {letter} occurs {total} {'time' if total == 1 else 'times'}.")
        return str(total)

    return Draft(text, tuple(f"letters:{word}" for word in words), solve)
