"""Two tests about numbers: word problems with facts that do not matter, and geometry."""

import random

from .question_letters import Accept, Draft
from .question_words import BOXES, COLORS, NAMES_HE, NAMES_SHE, OBJECTS
from .question_work import Work

# (events, largest number, facts that do not matter) at levels 1 to 8
_SUM_LEVELS = (
    (1, 9, 1), (1, 20, 1), (2, 20, 1), (2, 50, 2), (3, 60, 2), (4, 99, 2), (5, 300, 3), (6, 600, 3),
)  # fmt: skip

_GAINS = (
    "{s} finds {n} more {o}.",
    "{s} buys {n} {o}.",
    "Then {s} gets {n} {o} from {q}.",
    "{q} gives {p} {n} {o}.",
    "Then {s} wins {n} {o}.",
    "After that {s} picks up {n} {o}.",
)
_LOSSES = (
    "{s} loses {n} {o}.",
    "{s} gives {n} {o} to {q}.",
    "Then {s} sells {n} {o}.",
    "After that {s} gives away {n} of the {o}.",
    "{q} takes {n} {o} from {p}.",
)
_NOISE = (
    ("{q} is {n} years old.", "{n} years"),
    ("{p} is {n} years old.", "{n} years"),
    ("{q} has {n} {o}.", "{q}'s {n} {o}"),
    ("{q} has {n} {x}.", "{n} {x}"),
    ("{p} also has {n} {x}.", "{n} {x}"),
    ("Last year {q} sold {n} {x}.", "{n} {x}"),
    ("The walk home takes {n} minutes.", "{n} minutes"),
    ("The bus has {n} seats.", "{n} seats"),
    ("The house has {n} windows.", "{n} windows"),
    ("It is {n} degrees outside.", "{n} degrees"),
    ("The shop is {n} meters away.", "{n} meters"),
)
_SUM_QUESTIONS = (
    "How many {o} does {p} have now?",
    "How many {o} does {p} have in the end?",
    "How many {o} does {p} have?",
    "How many {o} are with {p} now?",
    "How many {o} does {p} have at the end?",
    "What is the number of {o} that {p} has now?",
    "Find how many {o} {p} has now.",
)
Event = tuple[str, str, int, int]  # sentence, kind ("+", "-", "+*", "-*"), count, times


def _event(rng: random.Random, total: int, largest: int, words: dict) -> Event:
    """One change of the total that leaves it within 0..999."""
    small = rng.randint(2, 9)
    each = rng.randint(2, max(3, min(largest // 4, 40)))
    roll = rng.random()
    many = {**words, "k": small, "n": each, "b": rng.choice(BOXES)}
    if roll < 0.2 and largest > 9 and total + small * each < 1000:
        return "{s} buys {k} {b} with {n} {o} each.".format(**many), "+*", each, small
    if roll < 0.28 and largest > 9 and small * each <= total:
        return "{s} gives away {k} {b} with {n} {o} each.".format(**many), "-*", each, small
    if total > 900 or (roll < 0.62 and total >= 2):
        number = rng.randint(1, min(largest, total - 1))
        return rng.choice(_LOSSES).format(**words, n=number), "-", number, 1
    number = rng.randint(2, min(largest, 999 - total))
    return rng.choice(_GAINS).format(**words, n=number), "+", number, 1


def sums(level: int, rng: random.Random, accept: Accept) -> Draft:
    """A word problem of one to six events, with one to three facts that do not matter."""
    events, largest, noises = _SUM_LEVELS[level - 1]
    while True:
        she = rng.random() < 0.5
        person = rng.choice(NAMES_SHE if she else NAMES_HE)
        friend = rng.choice([n for n in NAMES_SHE + NAMES_HE if n != person])
        item, other = rng.sample(OBJECTS, 2)
        words = {"p": person, "q": friend, "o": item, "x": other, "s": "She" if she else "He"}
        start = rng.randint(2, largest)
        story, total = [], start
        for _ in range(events):
            pronoun = words["s"] if rng.random() < 0.6 else person
            story.append(_event(rng, total, largest, {**words, "s": pronoun}))
            _, kind, count, times = story[-1]
            total += count * times * (1 if kind[0] == "+" else -1)
        noise = [(s, b, rng.randint(2, max(20, largest))) for s, b in rng.sample(_NOISE, noises)]
        key = " ".join(map(str, [person, start, *(e[2] * e[3] for e in story)]))
        if accept(key):
            break
    opening = rng.choice(("{p} has {n} {o}.", "{p} has {n} {o}.", "{p} starts with {n} {o}."))
    texts = [_after_then(sentence, words["s"]) for sentence, *_ in story]
    places = sorted(rng.randint(0, len(texts)) for _ in noise)
    for place, (sentence, _, number) in reversed(list(zip(places, noise, strict=True))):
        texts.insert(place, sentence.format(**words, n=number))
    texts.insert(0, opening.format(**words, n=start))
    texts.append(rng.choice(_SUM_QUESTIONS).format(**words))

    def solve(work: Work) -> str:
        idle = ", ".join(brief.format(**words, n=number) for _, brief, number in noise)
        work.write(f"Not needed: {idle}.")
        work.write(f"{person} starts with {start}.")
        total = start
        for _, kind, count, times in story:
            if times > 1:
                text, count = work.scale(count, times)
                work.write(f"{text}.")
            text, total = (work.add if kind[0] == "+" else work.subtract)(total, count)
            work.write(f"{text}.")
        work.write(f"{person} has {total} {item}.")
        return str(total)

    return " ".join(texts), (key,), solve


def _after_then(sentence: str, pronoun: str) -> str:
    """A pronoun that follows Then or After that is not a sentence's first word."""
    for lead in ("Then ", "After that "):
        if sentence.startswith(lead + pronoun + " "):
            return lead + sentence[len(lead)].lower() + sentence[len(lead) + 1 :]
    return sentence


_THINGS = ("garden", "room", "field", "yard", "poster", "carpet", "park", "table", "floor", "wall")
_GEOMETRY_NOISE = (
    "It is painted {c}.",
    "Its corners are {c}.",
    "It was made by {p}.",
    "It belongs to {p}.",
    "{p} drew it with a {c} pen.",
)
_RECT = (
    "A rectangle is {a} {u} long and {b} {u} wide.",
    "A rectangle has sides of {a} {u} and {b} {u}.",
    "A rectangle has length {a} {u} and width {b} {u}.",
    "A {t} has the shape of a rectangle, {a} {u} by {b} {u}.",
    "A rectangular {t} is {a} {u} by {b} {u}.",
)
_SQUARE = (
    "A square has a side of {a} {u}.",
    "The side of a square is {a} {u}.",
    "A square {t} has sides of {a} {u}.",
)
_L_SHAPE = (
    "An L-shape is a rectangle of {a} {u} by {b} {u} with a corner of {c} {u} by {d} {u} cut out.",
)
_PERIMETER = ("What is its perimeter?", "Find the perimeter.", "How long is its perimeter in {u}?")
_AREA = ("What is its area?", "Find the area.", "How large is its area?")


def _rect_perimeter(work: Work, a: int, b: int) -> int:
    work.write("The perimeter is 2 times the sum of the sides.")
    text, result = work.scale(work.total((a, b)), 2)
    work.write(f"{text}.")
    return result


def _square_perimeter(work: Work, a: int) -> int:
    work.write("A square has 4 equal sides.")
    return work.multiply(a, 4)


def _polygon_perimeter(work: Work, *sides: int) -> int:
    work.write("Add all the sides.")
    return work.total(sides)


def _area(work: Work, a: int, b: int) -> int:
    work.write("The area is length times width.")
    return work.multiply(a, b)


def _square_area(work: Work, a: int) -> int:
    work.write("The area is side times side.")
    return work.multiply(a, a)


def _right_area(work: Work, a: int, b: int) -> int:
    work.write("The area is half of the product of the legs.")
    work.write(f"Half of {a} is {a // 2}.")
    return work.multiply(a // 2, b)


def _angle(work: Work, *angles: int) -> int:
    whole = 180 if len(angles) == 2 else 360
    work.write(f"The angles add up to {whole}.")
    text, result = work.subtract(whole, work.total(angles))
    work.write(f"{text}.")
    return result


def _area_difference(work: Work, a: int, b: int, c: int, d: int) -> int:
    work.write("Take the small area from the large area.")
    text, result = work.subtract(work.multiply(a, b), work.multiply(c, d))
    work.write(f"{text}.")
    return result


def _area_sum(work: Work, *sides: int) -> int:
    work.write("Add the areas.")
    return work.total([work.multiply(a, b) for a, b in zip(sides[::2], sides[1::2], strict=True)])


# name: (descriptions, questions, solver, numbers)
_SHAPES = {
    "rectangle perimeter": (_RECT, _PERIMETER, _rect_perimeter, 2),
    "square perimeter": (_SQUARE, _PERIMETER, _square_perimeter, 1),
    "triangle perimeter": (
        ("A triangle has sides of {a} {u}, {b} {u} and {c} {u}.",
         "The sides of a triangle are {a} {u}, {b} {u} and {c} {u}."),
        _PERIMETER, _polygon_perimeter, 3),
    "polygon perimeter": (
        ("A shape has sides of {a} {u}, {b} {u}, {c} {u}, {d} {u} and {e} {u}.",),
        _PERIMETER, _polygon_perimeter, 5),
    "area": (_RECT, _AREA, _area, 2),
    "square area": (_SQUARE, _AREA, _square_area, 1),
    "right triangle area": (
        ("A right triangle has legs of {a} {u} and {b} {u}.",
         "The legs of a right triangle are {a} {u} and {b} {u}."), _AREA, _right_area, 2),
    "triangle angle": (
        ("Two angles of a triangle are {a} degrees and {b} degrees.",
         "A triangle has angles of {a} and {b} degrees."),
        ("What is the third angle?", "Find the third angle.", "How large is the third angle?"),
        _angle, 2),
    "quadrilateral angle": (
        ("Three angles of a quadrilateral are {a}, {b} and {c} degrees.",
         "A shape with four corners has angles of {a}, {b} and {c} degrees."),
        ("What is the fourth angle?", "Find the fourth angle.", "How large is the fourth angle?"),
        _angle, 3),
    "L-shape perimeter": (_L_SHAPE, _PERIMETER, lambda work, *n: _rect_perimeter(work, *n[:2]), 4),
    "L-shape area": (_L_SHAPE, _AREA, _area_difference, 4),
    "area with a hole": (
        ("A {t} of {a} {u} by {b} {u} has a hole of {c} {u} by {d} {u}.",
         "From a {t} of {a} {u} by {b} {u} a piece of {c} {u} by {d} {u} is taken away."),
        ("What area is left?", "How large is the area that is left?"), _area_difference, 4),
    "area of two": (
        ("There are two rectangles: {a} {u} by {b} {u} and {c} {u} by {d} {u}.",
         "One {t} is {a} {u} by {b} {u}, another is {c} {u} by {d} {u}."),
        ("What is the total area?", "Find the area of both together."), _area_sum, 4),
    "area of three": (
        ("There are three rectangles: {a} {u} by {b} {u}, {c} {u} by {d} {u} and {e} {u} by {f} "
         "{u}.",), ("What is the total area?", "Find the area of all together."), _area_sum, 6),
}  # fmt: skip

# (shapes, ranges of the numbers, the last one repeated) at levels 1 to 8
_SMALL, _TWO, _WIDE = (2, 9), (11, 99), (100, 999)
_PLAIN = ("rectangle perimeter", "square perimeter", "triangle perimeter", "triangle angle")
_GEOMETRY_LEVELS = (
    (_PLAIN, [(2, 30)]),
    ((*_PLAIN, "area"), [(2, 60), _SMALL]),
    ((*_PLAIN, "area", "quadrilateral angle", "L-shape perimeter"), [_TWO, _SMALL]),
    (("area", "square area", "right triangle area", "polygon perimeter"), [(11, 60), (11, 30)]),
    (("area", "square area", "right triangle area", "L-shape area"), [_TWO, _TWO, _SMALL]),
    (("polygon perimeter",), [_WIDE, _WIDE]),
    (("L-shape area", "area with a hole", "area of two"), [_TWO, _TWO, (11, 50)]),
    (("area of three",), [_TWO, _TWO]),
)


def _geometry_numbers(shape: str, count: int, ranges: list, rng: random.Random) -> list[int]:
    """The numbers of a shape that make sense together."""
    if "angle" in shape.split():
        if count == 2:
            first = rng.randint(20, 120)
            return [first, rng.randint(10, 170 - first)]
        return [rng.randint(40, 110) for _ in range(count)]
    numbers = [rng.randint(*ranges[min(i, len(ranges) - 1)]) for i in range(count)]
    if shape == "right triangle area":
        numbers[0] += numbers[0] % 2
    if shape.startswith("L-shape") or shape == "area with a hole":
        a, b, c, d = numbers
        return [a, b, max(2, min(c, a - 1)), max(2, min(d, b - 1))]
    return numbers


def geometry(level: int, rng: random.Random, accept: Accept) -> Draft:
    """A perimeter, an area or an angle, worked digit by digit."""
    shapes, ranges = _GEOMETRY_LEVELS[level - 1]
    while True:
        shape = rng.choice(shapes)
        descriptions, questions, solver, count = _SHAPES[shape]
        numbers = _geometry_numbers(shape, count, ranges, rng)
        key = " ".join(map(str, [shape, *numbers]))
        if accept(key):
            break
    words: dict[str, object] = dict(zip("abcdef", numbers, strict=False))
    words |= {"u": rng.choice(("cm", "m", "meters", "feet")), "t": rng.choice(_THINGS)}
    texts = [rng.choice(descriptions).format(**words)]
    if rng.random() < 0.3:
        words |= {"c": rng.choice(COLORS), "p": rng.choice(NAMES_SHE + NAMES_HE)}
        texts.append(rng.choice(_GEOMETRY_NOISE).format(**words))
    texts.append(rng.choice(questions).format(**words))

    def solve(work: Work) -> str:
        result = solver(work, *numbers)
        work.write(f"The answer is {result}.")
        return str(result)

    return " ".join(texts), (key,), solve
