"""The logic test: putting people or animals in order, and syllogisms about kinds of things."""

import random
from itertools import pairwise

from marco_fast.questions.draft import Accept, Draft
from marco_fast.questions.words import (
    ANIMALS,
    KINDS,
    NAMES_HE,
    NAMES_SHE,
    ORDINALS,
    SCALES,
    ZH_ANIMALS,
    ZH_NAMES_HE,
    ZH_NAMES_SHE,
    ZH_NUMERALS,
    ZH_SCALES,
)
from marco_fast.questions.work import Work

_ROW = 6  # numbered names on one line


def logic(level: int, rng: random.Random, accept: Accept, language: str) -> Draft:
    """An order of level + 2 names, or a chain of about as many kinds."""
    if rng.random() < 0.5:
        return _ordering(level + 2, rng, accept, language)
    return _syllogism(level, rng, accept, language)


# Orderings.

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


def _ordering(size: int, rng: random.Random, accept: Accept, language: str) -> Draft:
    """Who is at a place of an order, from shuffled comparisons of neighbours."""
    zh = language == "zh"
    scale = rng.choice(ZH_SCALES if zh else SCALES)
    while True:
        chain = _order_names(size, bool(scale[-1]), rng, zh)
        key = "orderings:" + " ".join(sorted(chain))
        if accept(key):
            break
    facts = _order_facts(rng, chain, scale, zh)
    sentences = [_capital(sentence) for sentence, _, _ in facts]
    for _ in range(rng.choice((0, 0, 0, 1)) if size < 6 else rng.choice((0, 0, 1, 2))):
        a, b = rng.sample(chain, 2)
        color = rng.choice("红蓝绿" if zh else ("red", "blue", "green"))
        noise = rng.choice(_ZH_ORDER_NOISE if zh else _ORDER_NOISE).format(a=a, b=b, c=color)
        sentences.insert(rng.randint(0, len(sentences)), _capital(noise))
    rank = min(rng.choice((0, 0, 0, 1, 1, 2, 3, 4)), (size - 1) // 2)
    from_top = rng.random() < 0.5
    if zh:
        superlative = ZH_NUMERALS[rank] + str(scale[0 if from_top else 1])
    else:
        superlative = ORDINALS[rank] + str(scale[1 if from_top else 3])
    questions = _ZH_ORDER_QUESTIONS if zh else _ORDER_QUESTIONS
    sentences.append(rng.choice(questions).format(s=superlative))
    place = rank if from_top else size - 1 - rank

    def solve(work: Work) -> str:
        # Up from the first name to the top, then down. Each step of a walk continues a pair, and
        # the two of a pair stand side by side (in Chinese token beside token): what followed a
        # name before is the easiest thing for a small model to look up.
        pairs = [(_short(a), _short(b)) for _, a, b in facts]
        short, joint = [_short(one) for one in chain], "" if zh else " "
        work.write(f"Find the {superlative}.")
        _write_row(work, "Less:", [f"{b}{joint}{a}" for a, b in pairs], 3)
        up = short[short.index(pairs[0][1]) :: -1]
        work.write(f"Up: {joint.join(up)}.")
        _write_row(work, "More:", [f"{a}{joint}{b}" for a, b in pairs], 3)
        work.write(f"Down: {joint.join(short)}.")
        order = [_bare(one) for one in chain]
        if work.slips():
            _swap_neighbour(work, order, place)
        _write_row(work, "So", [f"{i} {one}" for i, one in enumerate(order, 1)], _ROW)
        work.write(f"The {superlative} is number {place + 1}: {order[place]}.")
        return order[place]

    return Draft(("" if zh else " ").join(sentences), (key,), solve)


def _order_names(size: int, fits_animals: bool, rng: random.Random, zh: bool) -> list[str]:
    if fits_animals and rng.random() < 0.35:
        return rng.sample(ZH_ANIMALS, size) if zh else [
            f"the {animal}" for animal in rng.sample(ANIMALS, size)
        ]  # fmt: skip
    return rng.sample(ZH_NAMES_SHE + ZH_NAMES_HE if zh else NAMES_SHE + NAMES_HE, size)


def _order_facts(
    rng: random.Random, chain: list[str], scale: tuple, zh: bool
) -> list[tuple[str, str, str]]:
    """Shuffled (sentence, more, less) of neighbours; in a long chain now and then one more."""
    pairs = list(pairwise(chain))
    if len(chain) >= 8 and rng.random() < 0.3:
        low, high = sorted(rng.sample(range(len(chain)), 2))
        if high - low > 1:
            pairs.append((chain[low], chain[high]))
    rng.shuffle(pairs)
    forms: tuple[str, ...]
    if zh:
        forms = (f"{{a}}比{{b}}{scale[0]}。", f"{{b}}比{{a}}{scale[1]}。")
        rarely = f"{{b}}没有{{a}}{scale[0]}。"
    else:
        more, _, less, _, plain, _ = scale
        forms = (f"{{a}} is {more} than {{b}}.", f"{{b}} is {less} than {{a}}.")
        rarely = f"{{b}} is not as {plain} as {{a}}."
    if rng.random() < 0.3:
        forms += (rarely,)
    return [(rng.choice(forms).format(a=a, b=b), a, b) for a, b in pairs]


def _swap_neighbour(work: Work, order: list[str], place: int) -> None:
    """The slip of an ordering: the name asked for changes places with one on the same line."""
    beside = [
        i for i in (place - 1, place + 1) if 0 <= i < len(order) and i // _ROW == place // _ROW
    ]
    if beside:
        other = work.rng.choice(beside)
        order[place], order[other] = order[other], order[place]
        work.slip_step = len(work.steps) + place // _ROW


def _write_row(work: Work, label: str, items: list[str], width: int) -> None:
    """Steps of `width` items."""
    for begin in range(0, len(items), width):
        work.write(f"{label} {', '.join(items[begin : begin + width])}.")


def _bare(one: str) -> str:
    return one.removeprefix("the ")


def _short(one: str) -> str:
    """A name, without the 小 that all Chinese names begin with."""
    return _bare(one).removeprefix("小")


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


# Syllogisms.

_ANSWERS = {"en": ("yes", "no", "unknown"), "zh": ("是", "不是", "不知道")}
_ALL = ("All {a}s are {b}s.", "Every {a} is a {b}.", "Each {a} is a {b}.", "Any {a} is a {b}.")
_NO = ("No {a} is a {b}.", "No {a}s are {b}s.")
_ZH_ALL = ("所有的 {a} 都是 {b}。", "每个 {a} 都是 {b}。", "凡是 {a} 都是 {b}。")
_ZH_NO = ("没有 {a} 是 {b}。", "{a} 都不是 {b}。")


def _syllogism(level: int, rng: random.Random, accept: Accept, language: str) -> Draft:
    """Whether somebody is of a kind: yes, no, or unknown where the text does not say."""
    zh = language == "zh"
    hops = max(1, level - 1)
    sidetracks = (level + 1) // 2
    while True:
        kinds = rng.sample(KINDS, hops + 1 + 2 * sidetracks)
        person = rng.choice(ZH_NAMES_SHE + ZH_NAMES_HE if zh else NAMES_SHE + NAMES_HE)
        key = f"syllogisms:{person} " + " ".join(kinds[: hops + 1])
        if accept(key):
            break
    chain, rest = kinds[: hops + 1], kinds[hops + 1 :]
    rules = list(pairwise(chain))
    no: tuple[str, str] | None = None
    verdict = rng.randrange(3)
    if verdict == 0:
        asked = rng.choice(chain[1:])
    elif verdict == 1:
        asked = rest[0]
        no = (rng.choice(chain), asked)
    else:
        asked = rest[0]
    # What leads into the chain, or runs beside it, says nothing about who is in the chain.
    for index in range(sidetracks):
        a, b = rest[2 * index], rest[2 * index + 1]
        rules.append((a, rng.choice(chain)) if verdict == 2 and index == 0 else (b, a))
    said = [(rng.choice(_ZH_ALL if zh else _ALL).format(a=a, b=b), a, b, True) for a, b in rules]
    decoy = (rest[1], rng.choice(chain)) if rng.random() < 0.5 else None
    for a, b in filter(None, (no, decoy)):
        said.append((rng.choice(_ZH_NO if zh else _NO).format(a=a, b=b), a, b, False))
    first = f"{person}是一个 {chain[0]}。" if zh else f"{person} is a {chain[0]}."
    said.append((first, person, chain[0], True))
    rng.shuffle(said)
    ask = f"{person}是 {asked} 吗？" if zh else f"Is {person} a {asked}?"
    text = ("" if zh else " ").join([*(each[0] for each in said), ask])

    def solve(work: Work) -> str:
        work.write(f"Is {person} {asked}?")
        up = {a: b for _, a, b, positive in said if positive}
        _write_row(work, "Is:", [f"{a} {b}" for a, b in up.items()], 3)
        nots = [(a, b) for _, a, b, positive in said if not positive]
        return _follow(work, person, asked, up, nots, _ANSWERS[language])

    return Draft(text, (key,), solve)


def _follow(
    work: Work,
    person: str,
    asked: str,
    up: dict[str, str],
    nots: list[tuple[str, str]],
    answers: tuple[str, str, str],
) -> str:
    """What is denied, the walk from the person to what is asked, or the end; then the verdict."""
    ruled_out, row = set(), []
    for a, b in nots:
        hit = (b == asked) != work.slips()
        if hit:
            ruled_out.add(a)
        row.append(f"{a} not {b} asked" if hit else f"{a} not {b}")
    work.write(f"No: {', '.join(row) or 'none'}.")
    walk = [person]
    while walk[-1] != asked and walk[-1] in up:
        after = up[walk[-1]]
        if work.slips():
            after = work.rng.choice([kind for kind in up.values() if kind != after])
        if after in walk:
            raise ValueError(f"expected another kind than those of the walk, got {after}")
        walk.append(after)
    reached = walk[-1] == asked
    work.write(f"So: {' '.join(walk)}{' asked' if reached else ''}.")
    yes, no, unknown = answers
    found = yes if reached else no if ruled_out.intersection(walk) else unknown
    work.write(f"So {found}.")
    return found
