"""Two tests about text: counting letters, and putting people or animals in order."""

import random
from collections.abc import Callable
from itertools import pairwise

from .question_words import ANIMALS, NAMES_HE, NAMES_SHE, ORDINALS, SCALES, WORDS
from .question_work import Work

Accept = Callable[[str], bool]
Draft = tuple[str, tuple[str, ...], Callable[[Work], str]]  # text, split keys, solver

# (words, fewest and most letters of each) at levels 1 to 8
_LETTER_LEVELS = (
    (1, 3, 5), (1, 5, 8), (1, 7, 11), (1, 10, 15), (2, 6, 10), (3, 6, 11), (4, 6, 12), (5, 7, 13),
)  # fmt: skip

_LETTER_PHRASES = (
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


def _word(rng: random.Random, shortest: int, longest: int, accept: Accept) -> str:
    """A real word, a splice of two, or random letters; of a length within the bounds, accepted."""
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
        if shortest <= len(word) <= longest and accept(word):
            return word


def letters(level: int, rng: random.Random, accept: Accept) -> Draft:
    """How often a letter occurs in one to five words."""
    count, shortest, longest = _LETTER_LEVELS[level - 1]
    words = [_word(rng, shortest, longest, accept) for _ in range(count)]
    text = "".join(words)
    roll = rng.random()
    if roll < 0.45:
        letter = max(sorted(set(text)), key=lambda c: (text.count(c), rng.random()))
    elif roll < 0.88:
        letter = rng.choice(text)
    else:
        letter = rng.choice("abcdefghijklmnopqrstuvwxyz")
    shown = [word.capitalize() if rng.random() < 0.06 else word for word in words]
    quote, mark = rng.choice(("", "", "", "'", '"')), rng.choice(("", "", "", "'", '"'))
    phrase = rng.choice(_LETTER_PHRASES)
    if "{c}s" in phrase or "{c}'s" in phrase:
        mark = ""
    the = "the word" if count == 1 else "the words"
    question = phrase.format(c=mark + letter + mark, w=quote + " ".join(shown) + quote, the=the)

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

    return (
        question[0].upper() + question[1:] if not question.startswith(words[0]) else question,
        (tuple(words)),
        solve,
    )


_ORDER_QUESTIONS = (
    "Who is the {s}?",
    "Who is the {s} of them?",
    "Who is the {s} of all?",
    "Which one is the {s}?",
    "Name the {s}.",
    "Name the {s} one.",
    "Find the {s}.",
)
_ORDER_NOISE = (
    "{a} lives in a {c} house.",
    "{a} likes the color {c}.",
    "{a} and {b} are friends.",
    "{a} met {b} yesterday.",
    "All of them like music.",
    "{b} has a {c} hat.",
)


def _order_facts(rng: random.Random, chain: list[str], scale: tuple) -> list[tuple[str, str, str]]:
    """Shuffled (sentence, more, less) of neighbours; in a long chain now and then one more."""
    more, _, less, _, plain, _ = scale
    pairs = list(pairwise(chain))
    if len(chain) >= 8 and rng.random() < 0.3:
        low, high = sorted(rng.sample(range(len(chain)), 2))
        if high - low > 1:
            pairs.append((chain[low], chain[high]))
    rng.shuffle(pairs)
    forms: tuple[str, ...] = (f"{{a}} is {more} than {{b}}.", f"{{b}} is {less} than {{a}}.")
    if rng.random() < 0.3:
        forms += (f"{{b}} is not as {plain} as {{a}}.",)
    return [(rng.choice(forms).format(a=a, b=b), a, b) for a, b in pairs]


def orderings(level: int, rng: random.Random, accept: Accept) -> Draft:
    """Who is at a place of an order, from shuffled comparisons of neighbours."""
    size = level + 2
    scale = rng.choice(SCALES)
    while True:
        if scale[5] and rng.random() < 0.35:
            chain = [f"the {animal}" for animal in rng.sample(ANIMALS, size)]
        else:
            chain = rng.sample(NAMES_SHE + NAMES_HE, size)
        key = " ".join(sorted(chain))
        if accept(key):
            break
    facts = _order_facts(rng, chain, scale)
    sentences = [_capital(sentence) for sentence, _, _ in facts]
    for _ in range(rng.choice((0, 0, 0, 1)) if level < 4 else rng.choice((0, 0, 1, 2))):
        a, b = rng.sample(chain, 2)
        noise = rng.choice(_ORDER_NOISE).format(a=a, b=b, c=rng.choice(("red", "blue", "green")))
        sentences.insert(rng.randint(0, len(sentences)), _capital(noise))
    rank = rng.choice((0, 0, 0, 1, 1, 2, 3, 4))
    rank = min(rank, (size - 1) // 2)
    from_top = rng.random() < 0.5
    superlative = ORDINALS[rank] + (scale[1] if from_top else scale[3])
    question = rng.choice(_ORDER_QUESTIONS).format(s=superlative)
    place = rank if from_top else size - 1 - rank

    def solve(work: Work) -> str:
        # Every comparison is written in both directions: each step of a walk then continues
        # something written before, what follows "X up" on the way up and "X >" on the way down.
        pairs = [(_bare(a), _bare(b)) for _, a, b in facts]
        _write_row(work, "More:", [f"{a} > {b}" for a, b in pairs], 3)
        _write_row(work, "Less:", [f"{b} up {a}" for a, b in pairs], 3)
        order = [_bare(one) for one in chain]
        begin = order.index(pairs[0][0])
        _write_walk(work, "Up:", [*reversed(order[: begin + 1]), "top"], "up")
        _write_walk(work, "Down:", [*order, "end"], ">")
        if work.slips():
            same_step = [
                i for i in (place - 1, place + 1) if 0 <= i < size and i // _ROW == place // _ROW
            ]
            if same_step:
                other = work.rng.choice(same_step)
                order[place], order[other] = order[other], order[place]
                work.slip_step = len(work.steps) + place // _ROW
        _write_row(work, "So", [f"{i} {one}" for i, one in enumerate(order, 1)], _ROW)
        work.write(f"The {superlative} is number {place + 1}: {order[place]}.")
        return order[place]

    return " ".join([*sentences, question]), (key,), solve


_ROW = 6  # numbered names on one line
_WALK = 5  # names a walk adds on one line


def _write_walk(work: Work, label: str, names: list[str], sign: str) -> None:
    """Steps `label a > b > c.`, the next one beginning with the last name of the one before."""
    for begin in range(0, len(names) - 1, _WALK):
        work.write(f"{label} {f' {sign} '.join(names[begin : begin + _WALK + 1])}.")


def _write_row(work: Work, label: str, items: list[str], width: int) -> None:
    """Steps of `width` items."""
    for begin in range(0, len(items), width):
        work.write(f"{label} {', '.join(items[begin : begin + width])}.")


def _bare(one: str) -> str:
    return one.removeprefix("the ")


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
