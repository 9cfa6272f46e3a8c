"""Orderings: people or animals put in order by comparisons of neighbours."""

import random
from itertools import pairwise

from marco_fast.questions.draft import Accept, Draft
from marco_fast.questions.words import (
    ANIMALS,
    NAMES_HE,
    NAMES_SHE,
    ORDINALS,
    SCALES,
    ZH_ANIMALS,
    ZH_NAMES_HE,
    ZH_NAMES_SHE,
    ZH_NUMERALS,
    ZH_SCALES,
    Scale,
)
from marco_fast.questions.work import Work

_ROW = 6  # numbered names per line of the thought

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
_ZH_ORDER_QUESTIONS = ("谁{s}？", "{s}的是谁？", "他们之中谁{s}？", "找出{s}的那一个。")
_ZH_ORDER_NOISE = (
    "{a}喜欢{c}色。", "{a}和{b}是朋友。", "{a}昨天见过{b}。", "大家都喜欢音乐。",
)  # fmt: skip


def ordering(size: int, rng: random.Random, accept: Accept, language: str) -> Draft:
    """Asks for the name at one rank of an order, given shuffled comparisons of neighbours."""
    zh = language == "zh"
    scale = rng.choice(ZH_SCALES if zh else SCALES)
    while True:
        chain = _order_names(size, scale.fits_animals, rng, zh)
        key = "orderings:" + " ".join(sorted(chain))
        if accept(key):
            break
    facts = _order_facts(rng, chain, scale, zh)
    sentences = [_capital(sentence) for sentence, _, _ in facts]
    _insert_noise(rng, sentences, chain, zh)
    rank = min(rng.choice((0, 0, 0, 1, 1, 2, 3, 4)), (size - 1) // 2)
    from_top = rng.random() < 0.5
    superlative = (ZH_NUMERALS if zh else ORDINALS)[rank] + (
        scale.most if from_top else scale.least
    )
    questions = _ZH_ORDER_QUESTIONS if zh else _ORDER_QUESTIONS
    sentences.append(rng.choice(questions).format(s=superlative))
    asked = rank if from_top else size - 1 - rank
    pairs = [(a, b) for _, a, b in facts]

    def solve(work: Work) -> str:
        return _sort_and_pick(work, chain, pairs, superlative, asked, zh)

    return Draft(("" if zh else " ").join(sentences), (key,), solve)


def _insert_noise(rng: random.Random, sentences: list[str], chain: list[str], zh: bool) -> None:
    """Puts up to two irrelevant sentences at random positions among the others."""
    for _ in range(rng.choice((0, 0, 0, 1)) if len(chain) < 6 else rng.choice((0, 0, 1, 2))):
        a, b = rng.sample(chain, 2)
        color = rng.choice("红蓝绿" if zh else ("red", "blue", "green"))
        noise = rng.choice(_ZH_ORDER_NOISE if zh else _ORDER_NOISE).format(a=a, b=b, c=color)
        sentences.insert(rng.randint(0, len(sentences)), _capital(noise))


def _sort_and_pick(
    work: Work,
    chain: list[str],
    pairs: list[tuple[str, str]],
    superlative: str,
    asked: int,
    zh: bool,
) -> str:
    """Writes a walk up from the first name to the top, a walk down, and the sorted names.

    Each step of a walk continues a pair, and the two names of a pair stand side by side (in Chinese
    without a space): a small model easily looks up what followed a name before.

    Args:
        pairs: (more, less) in the order of the question.
        asked: index in the chain of the name that the question asks for.

    Returns:
        The name that the written order has at index `asked`.
    """
    short = [_short(one) for one in chain]
    short_pairs, joint = [(_short(a), _short(b)) for a, b in pairs], "" if zh else " "
    work.write(f"Find the {superlative}.")
    work.write_rows("Less:", [f"{b}{joint}{a}" for a, b in short_pairs], 3)
    up = short[short.index(short_pairs[0][1]) :: -1]
    work.write(f"Up: {joint.join(up)}.")
    work.write_rows("More:", [f"{a}{joint}{b}" for a, b in short_pairs], 3)
    work.write(f"Down: {joint.join(short)}.")
    order = [_bare(one) for one in chain]
    if work.slips():
        _swap_neighbour(work, order, asked)
    work.write_rows("So", [f"{i} {one}" for i, one in enumerate(order, 1)], _ROW)
    work.write(f"The {superlative} is number {asked + 1}: {order[asked]}.")
    return order[asked]


def _order_names(size: int, fits_animals: bool, rng: random.Random, zh: bool) -> list[str]:
    if fits_animals and rng.random() < 0.35:
        return rng.sample(ZH_ANIMALS, size) if zh else [
            f"the {animal}" for animal in rng.sample(ANIMALS, size)
        ]  # fmt: skip
    return rng.sample(ZH_NAMES_SHE + ZH_NAMES_HE if zh else NAMES_SHE + NAMES_HE, size)


def _order_facts(
    rng: random.Random, chain: list[str], scale: Scale, zh: bool
) -> list[tuple[str, str, str]]:
    """Shuffled (sentence, more, less) of neighbours in the chain.

    A long chain sometimes has one more comparison, of two names that are not neighbours.
    """
    pairs = list(pairwise(chain))
    if len(chain) >= 8 and rng.random() < 0.3:
        low, high = sorted(rng.sample(range(len(chain)), 2))
        if high - low > 1:
            pairs.append((chain[low], chain[high]))
    rng.shuffle(pairs)
    forms: tuple[str, ...]
    if zh:
        forms = (f"{{a}}比{{b}}{scale.more}。", f"{{b}}比{{a}}{scale.less}。")
        rarely = f"{{b}}没有{{a}}{scale.adjective}。"
    else:
        forms = (f"{{a}} is {scale.more} than {{b}}.", f"{{b}} is {scale.less} than {{a}}.")
        rarely = f"{{b}} is not as {scale.adjective} as {{a}}."
    if rng.random() < 0.3:
        forms += (rarely,)
    return [(rng.choice(forms).format(a=a, b=b), a, b) for a, b in pairs]


def _swap_neighbour(work: Work, order: list[str], index: int) -> None:
    """The slip of an ordering: swaps the name asked for with a neighbour on the same line."""
    beside = [
        i for i in (index - 1, index + 1) if 0 <= i < len(order) and i // _ROW == index // _ROW
    ]
    if beside:
        other = work.rng.choice(beside)
        order[index], order[other] = order[other], order[index]
        work.slip_step = len(work.steps) + index // _ROW


def _bare(one: str) -> str:
    return one.removeprefix("the ")


def _short(one: str) -> str:
    """A name without its article, and without the 小 that all Chinese names begin with."""
    return _bare(one).removeprefix("小")


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
