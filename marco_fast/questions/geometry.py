"""The geometry test: perimeters, areas and angles, worked digit by digit."""

import random
from collections.abc import Callable

from marco_fast.questions.draft import Accept, Draft
from marco_fast.questions.words import (
    COLORS,
    NAMES_HE,
    NAMES_SHE,
    ZH_COLORS,
    ZH_NAMES_HE,
    ZH_NAMES_SHE,
)
from marco_fast.questions.work import Work

_PERIMETER = ("What is its perimeter?", "Find the perimeter.", "How long is its perimeter in {u}?")
_AREA = ("What is its area?", "Find the area.", "How large is its area?")
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
_ALL = ("What is the total area?", "Find the area of all together.")
# shape: (descriptions, questions); {a} to {h} are its numbers, {u} the unit, {t} a thing
_TEXTS = {
    "rectangle perimeter": (_RECT, _PERIMETER),
    "square perimeter": (_SQUARE, _PERIMETER),
    "triangle perimeter": (
        ("A triangle has sides of {a} {u}, {b} {u} and {c} {u}.",
         "The sides of a triangle are {a} {u}, {b} {u} and {c} {u}."), _PERIMETER),
    "polygon perimeter": (
        ("A shape has sides of {a} {u}, {b} {u}, {c} {u}, {d} {u} and {e} {u}.",), _PERIMETER),
    "area": (_RECT, _AREA),
    "square area": (_SQUARE, _AREA),
    "right triangle area": (
        ("A right triangle has legs of {a} {u} and {b} {u}.",
         "The legs of a right triangle are {a} {u} and {b} {u}."), _AREA),
    "triangle angle": (
        ("Two angles of a triangle are {a} degrees and {b} degrees.",
         "A triangle has angles of {a} and {b} degrees."),
        ("What is the third angle?", "Find the third angle.", "How large is the third angle?")),
    "quadrilateral angle": (
        ("Three angles of a quadrilateral are {a}, {b} and {c} degrees.",
         "A shape with four corners has angles of {a}, {b} and {c} degrees."),
        ("What is the fourth angle?", "Find the fourth angle.", "How large is the fourth angle?")),
    "L-shape perimeter": (_L_SHAPE, _PERIMETER),
    "L-shape area": (_L_SHAPE, _AREA),
    "area with a hole": (
        ("A {t} of {a} {u} by {b} {u} has a hole of {c} {u} by {d} {u}.",
         "From a {t} of {a} {u} by {b} {u} a piece of {c} {u} by {d} {u} is taken away."),
        ("What area is left?", "How large is the area that is left?")),
    "area of two": (
        ("There are two rectangles: {a} {u} by {b} {u} and {c} {u} by {d} {u}.",
         "One {t} is {a} {u} by {b} {u}, another is {c} {u} by {d} {u}."),
        ("What is the total area?", "Find the area of both together.")),
    "area of three": (
        ("There are three rectangles: {a} {u} by {b} {u}, {c} {u} by {d} {u} and {e} {u} by {f} "
         "{u}.",), _ALL),
    "area of four": (
        ("There are four rectangles: {a} {u} by {b} {u}, {c} {u} by {d} {u}, {e} {u} by {f} {u} "
         "and {g} {u} by {h} {u}.",), _ALL),
}  # fmt: skip
_ZH_PERIMETER = ("它的周长是多少？", "求周长。", "周长是多少{u}？")
_ZH_AREA = ("它的面积是多少？", "求面积。", "面积有多大？")
_ZH_ALL = ("总面积是多少？", "求总面积。")
_ZH_RECT = ("一个长方形长{a}{u}，宽{b}{u}。", "一块长方形的{t}长{a}{u}，宽{b}{u}。")
_ZH_SQUARE = ("一个正方形的边长是{a}{u}。", "一块正方形的{t}边长是{a}{u}。")
_ZH_L_SHAPE = ("一个{a}{u}乘{b}{u}的长方形切掉一个{c}{u}乘{d}{u}的角。",)
_ZH_TEXTS = {
    "rectangle perimeter": (_ZH_RECT, _ZH_PERIMETER),
    "square perimeter": (_ZH_SQUARE, _ZH_PERIMETER),
    "triangle perimeter": (
        ("一个三角形的三条边是{a}{u}、{b}{u}和{c}{u}。",), _ZH_PERIMETER),
    "polygon perimeter": (
        ("一个五边形的五条边是{a}{u}、{b}{u}、{c}{u}、{d}{u}和{e}{u}。",), _ZH_PERIMETER),
    "area": (_ZH_RECT, _ZH_AREA),
    "square area": (_ZH_SQUARE, _ZH_AREA),
    "right triangle area": (
        ("一个直角三角形的两条直角边是{a}{u}和{b}{u}。",), _ZH_AREA),
    "triangle angle": (
        ("一个三角形的两个角是{a}度和{b}度。",), ("第三个角是多少度？", "求第三个角。")),
    "quadrilateral angle": (
        ("一个四边形的三个角是{a}度、{b}度和{c}度。",), ("第四个角是多少度？", "求第四个角。")),
    "L-shape perimeter": (_ZH_L_SHAPE, ("剩下部分的周长是多少？",)),
    "L-shape area": (_ZH_L_SHAPE, ("剩下部分的面积是多少？",)),
    "area with a hole": (
        ("一块{a}{u}乘{b}{u}的{t}中间有一个{c}{u}乘{d}{u}的洞。",),
        ("剩下的面积是多少？", "还剩多大面积？")),
    "area of two": (("有两个长方形：{a}{u}乘{b}{u}和{c}{u}乘{d}{u}。",), _ZH_ALL),
    "area of three": (
        ("有三个长方形：{a}{u}乘{b}{u}、{c}{u}乘{d}{u}和{e}{u}乘{f}{u}。",), _ZH_ALL),
    "area of four": (
        ("有四个长方形：{a}{u}乘{b}{u}、{c}{u}乘{d}{u}、{e}{u}乘{f}{u}和{g}{u}乘{h}{u}。",),
        _ZH_ALL),
}  # fmt: skip
_THINGS = ("garden", "room", "field", "yard", "poster", "carpet", "park", "table", "floor", "wall")
_ZH_THINGS = ("地", "草地", "地毯", "木板", "菜地")
_UNITS = {"en": ("cm", "m", "meters", "feet"), "zh": ("厘米", "米")}
_NOISE = (
    "It is painted {c}.",
    "Its corners are {c}.",
    "It was made by {p}.",
    "It belongs to {p}.",
    "{p} drew it with a {c} pen.",
)
_ZH_NOISE = ("它是{c}的。", "它是{p}的。", "{p}用{c}的笔画了它。")


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


# shape: (the function that works it out, how many numbers it has)
_SHAPES: dict[str, tuple[Callable[..., int], int]] = {
    "rectangle perimeter": (_rect_perimeter, 2),
    "square perimeter": (_square_perimeter, 1),
    "triangle perimeter": (_polygon_perimeter, 3),
    "polygon perimeter": (_polygon_perimeter, 5),
    "area": (_area, 2),
    "square area": (_square_area, 1),
    "right triangle area": (_right_area, 2),
    "triangle angle": (_angle, 2),
    "quadrilateral angle": (_angle, 3),
    "L-shape perimeter": (lambda work, *n: _rect_perimeter(work, *n[:2]), 4),
    "L-shape area": (_area_difference, 4),
    "area with a hole": (_area_difference, 4),
    "area of two": (_area_sum, 4),
    "area of three": (_area_sum, 6),
    "area of four": (_area_sum, 8),
}

# (shapes, ranges of their numbers) of levels 1 to 8; the last range serves all further numbers
_SMALL, _TWO, _WIDE = (2, 9), (11, 99), (100, 999)
_EASY = ("rectangle perimeter", "square perimeter", "triangle perimeter", "triangle angle")
_LEVELS = (
    (_EASY, [(2, 30)]),
    ((*_EASY, "area", "quadrilateral angle", "L-shape perimeter"), [_TWO, _SMALL]),
    (("area", "square area", "right triangle area", "polygon perimeter"), [(11, 60), (11, 30)]),
    (("area", "square area", "right triangle area", "L-shape area"), [_TWO, _TWO, _SMALL]),
    (("polygon perimeter",), [_WIDE, _WIDE]),
    (("L-shape area", "area with a hole", "area of two"), [_TWO, _TWO, (11, 50)]),
    (("area of three",), [_TWO, _TWO]),
    (("area of four",), [_TWO, _TWO]),
)


def _numbers(
    shape: str, count: int, ranges: list[tuple[int, int]], rng: random.Random
) -> list[int]:
    """Numbers for which the shape exists: its sides close, and a corner fits into its sides."""
    if shape == "triangle angle":
        first = rng.randint(20, 120)
        return [first, rng.randint(10, 170 - first)]
    if shape == "quadrilateral angle":
        return [rng.randint(65, 110) for _ in range(count)]
    numbers = [rng.randint(*ranges[min(i, len(ranges) - 1)]) for i in range(count)]
    if shape == "right triangle area":
        numbers[0] += numbers[0] % 2
    elif shape == "triangle perimeter":
        a, b, _ = numbers
        numbers[2] = rng.randint(abs(a - b) + 1, a + b - 1)
    elif shape == "polygon perimeter":
        while 2 * max(numbers) >= sum(numbers):
            numbers[numbers.index(max(numbers))] //= 2
    elif shape.startswith("L-shape") or shape == "area with a hole":
        a, b, c, d = numbers
        a, b = max(a, 3), max(b, 3)
        return [a, b, min(c, a - 1), min(d, b - 1)]
    return numbers


def geometry(level: int, rng: random.Random, accept: Accept, language: str) -> Draft:
    """A question about a perimeter, an area or an angle."""
    zh = language == "zh"
    shapes, ranges = _LEVELS[level - 1]
    while True:
        shape = rng.choice(shapes)
        solver, count = _SHAPES[shape]
        numbers = _numbers(shape, count, ranges, rng)
        key = " ".join(map(str, [f"geometry:{shape}", *numbers]))
        if accept(key):
            break
    descriptions, questions = (_ZH_TEXTS if zh else _TEXTS)[shape]
    words: dict[str, object] = dict(zip("abcdefgh", numbers, strict=False))
    words |= {"u": rng.choice(_UNITS[language]), "t": rng.choice(_ZH_THINGS if zh else _THINGS)}
    texts = [rng.choice(descriptions).format(**words)]
    if not shape.startswith("area of ") and rng.random() < 0.3:
        people = ZH_NAMES_SHE + ZH_NAMES_HE if zh else NAMES_SHE + NAMES_HE
        words |= {"c": rng.choice(ZH_COLORS if zh else COLORS), "p": rng.choice(people)}
        texts.append(rng.choice(_ZH_NOISE if zh else _NOISE).format(**words))
    texts.append(rng.choice(questions).format(**words))

    def solve(work: Work) -> str:
        result = solver(work, *numbers)
        work.write(f"The answer is {result}.")
        return str(result)

    return Draft(("" if zh else " ").join(texts), (key,), solve)
