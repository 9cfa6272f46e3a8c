"""Answers of facts, geometry and steps questions, worked out from the text alone.

Every sentence has to match one template of the tables here, with every field in its role; any other
sentence is an error, so that a changed template of the generator is noticed.
"""

import re
from collections.abc import Callable

from marco_fast.questions.words import NAMES_HE, NAMES_SHE, ZH_NAMES_HE, ZH_NAMES_SHE
from tests.support.question_reasoning import Fields, read, sentences, table

HE, SHE = {*NAMES_HE, *ZH_NAMES_HE}, {*NAMES_SHE, *ZH_NAMES_SHE}

# Facts: p the person, s or t the person or the pronoun, q the friend, o the things counted,
# x other things, m and y the measure words of o and x, k boxes, r either of the two.

_OPENINGS = table("start: {p} has {n} {o}. | {p} starts with {n} {o}. | {p}有{n}{m}{o}。 | "
                  "{p}一开始有{n}{m}{o}。")  # fmt: skip
_STORY = table("""
+: {s} finds {n} more {o}. | {s} buys {n} {o}. | Then {t} gets {n} {o} from {q}.
+: {q} gives {p} {n} {o}. | Then {t} wins {n} {o}. | After that {t} picks up {n} {o}.
+: {s} buys {k} {box} with {n} {o} each. | {s}又找到{n}{m}{o}。 | {s}买了{n}{m}{o}。
+: {q}给了{p}{n}{m}{o}。 | 后来{s}又得到{n}{m}{o}。 | {s}买了{k}袋{o}，每袋{n}{m}。
-: {s} loses {n} {o}. | {s} gives {n} {o} to {q}. | Then {t} sells {n} {o}.
-: After that {t} gives away {n} of the {o}. | {q} takes {n} {o} from {p}.
-: {s} gives away {k} {box} with {n} {o} each. | {s}丢了{n}{m}{o}。 | {s}给了{q}{n}{m}{o}。
-: 后来{s}卖掉了{n}{m}{o}。 | {q}从{p}那里拿走了{n}{m}{o}。 | {s}送掉了{k}袋{o}，每袋{n}{m}。
noise: {r} is {n} years old. | {q} has {n} {o}. | {q} has {n} {x}. | {p} also has {n} {x}.
noise: Last year {q} sold {n} {x}. | The walk home takes {n} minutes. | The bus has {n} seats.
noise: The house has {n} windows. | It is {n} degrees outside. | The shop is {n} meters away.
noise: {r}今年{n}岁。 | {q}有{n}{m}{o}。 | {q}有{n}{y}{x}。 | {p}还有{n}{y}{x}。
noise: 去年{q}卖了{n}{y}{x}。 | 回家要走{n}分钟。 | 外面的气温是{n}度。 | 商店离这里{n}米。
""")
_FACTS_ASK = table("""
ask: How many {o} does {p} have now? | How many {o} does {p} have in the end?
ask: How many {o} does {p} have? | How many {o} are with {p} now?
ask: How many {o} does {p} have at the end? | What is the number of {o} that {p} has now?
ask: Find how many {o} {p} has now. | {p}现在有多少{m}{o}？ | {p}最后有多少{m}{o}？
ask: {p}一共有多少{m}{o}？ | 请问{p}现在有几{m}{o}？
""")


def _roles(start: Fields) -> Callable[[Fields], bool]:
    """Whether fields are in their roles, in a story that starts so."""
    person, item, measure = start["p"], start["o"], start.get("m")
    assert (person in HE) != (person in SHE), person
    pronoun, friends = ("She", HE) if person in SHE else ("He", SHE)
    if measure:
        pronoun = "她" if person in SHE else "他"
    roles: dict[str, Callable[[str], bool]] = {
        "p": lambda name: name == person,
        "s": lambda name: name in (person, pronoun),
        "t": lambda name: name in (person, pronoun.lower()),
        "q": lambda name: name in friends,
        "r": lambda name: name == person or name in friends,
        "o": lambda thing: thing == item,
        "x": lambda thing: thing != item,
        "m": lambda word: word == measure,
    }
    return lambda fields: all(roles[key](fields[key]) for key in roles.keys() & fields.keys())


def read_facts(text: str) -> tuple[list[int], list[str]]:
    """(the total at first and after every change, the numbers that do not matter)."""
    first, *story, last = sentences(text)
    _, start = read(first, _OPENINGS)
    fits = _roles(start)
    read(last, _FACTS_ASK, fits)
    totals, noise, friends = [int(start["n"])], [], set()
    for sentence in story:
        meaning, fields = read(sentence, _STORY, fits)
        friends |= {fields[key] for key in ("q", "r") if key in fields} - {start["p"]}
        if meaning == "noise":
            noise.append(fields["n"])
            continue
        change = int(fields["n"]) * int(fields.get("k", 1))
        totals.append(totals[-1] + (change if meaning == "+" else -change))
        assert 0 <= totals[-1] < 1000, text
    assert len(friends) <= 1, text
    assert noise, text
    assert len(totals) > 1, text
    return totals, noise


def facts_answer(text: str) -> str:
    return str(read_facts(text)[0][-1])


# Geometry: x a thing, u the unit, all other letters numbers.

_SHAPES = table("""
rectangle: A rectangle is {a} {u} long and {b} {u} wide. | A rectangular {x} is {a} {u} by {b} {u}.
rectangle: A rectangle has sides of {a} {u} and {b} {u}. | 一个长方形长{a}{u}，宽{b}{u}。
rectangle: A rectangle has length {a} {u} and width {b} {u}. | 一块长方形的{x}长{a}{u}，宽{b}{u}。
rectangle: A {x} has the shape of a rectangle, {a} {u} by {b} {u}.
square: A square has a side of {a} {u}. | The side of a square is {a} {u}.
square: A square {x} has sides of {a} {u}.
square: 一个正方形的边长是{a}{u}。 | 一块正方形的{x}边长是{a}{u}。
polygon: A triangle has sides of {a} {u}, {b} {u} and {c} {u}.
polygon: The sides of a triangle are {a} {u}, {b} {u} and {c} {u}.
polygon: A shape has sides of {a} {u}, {b} {u}, {c} {u}, {d} {u} and {e} {u}.
polygon: 一个三角形的三条边是{a}{u}、{b}{u}和{c}{u}。
polygon: 一个五边形的五条边是{a}{u}、{b}{u}、{c}{u}、{d}{u}和{e}{u}。
right: A right triangle has legs of {a} {u} and {b} {u}.
right: The legs of a right triangle are {a} {u} and {b} {u}.
right: 一个直角三角形的两条直角边是{a}{u}和{b}{u}。
three: Two angles of a triangle are {a} degrees and {b} degrees.
three: A triangle has angles of {a} and {b} degrees. | 一个三角形的两个角是{a}度和{b}度。
four: Three angles of a quadrilateral are {a}, {b} and {c} degrees.
four: A shape with four corners has angles of {a}, {b} and {c} degrees.
four: 一个四边形的三个角是{a}度、{b}度和{c}度。
corner: An L-shape is a rectangle of {a} {u} by {b} {u} with a corner of {c} {u} by {d} {u} cut out.
corner: 一个{a}{u}乘{b}{u}的长方形切掉一个{c}{u}乘{d}{u}的角。
hole: A {x} of {a} {u} by {b} {u} has a hole of {c} {u} by {d} {u}.
hole: From a {x} of {a} {u} by {b} {u} a piece of {c} {u} by {d} {u} is taken away.
hole: 一块{a}{u}乘{b}{u}的{x}中间有一个{c}{u}乘{d}{u}的洞。
2: There are two rectangles: {a} {u} by {b} {u} and {c} {u} by {d} {u}.
2: One {x} is {a} {u} by {b} {u}, another is {c} {u} by {d} {u}.
2: 有两个长方形：{a}{u}乘{b}{u}和{c}{u}乘{d}{u}。
3: There are three rectangles: {a} {u} by {b} {u}, {c} {u} by {d} {u} and {e} {u} by {f} {u}.
3: 有三个长方形：{a}{u}乘{b}{u}、{c}{u}乘{d}{u}和{e}{u}乘{f}{u}。
4: There are four rectangles: {a} {u} by {b} {u}, {c} {u} by {d} {u}, {e} {u} by {f} {u} and {i}.
4: 有四个长方形：{a}{u}乘{b}{u}、{c}{u}乘{d}{u}、{e}{u}乘{f}{u}和{j}。
""".replace("{i}", "{g} {u} by {h} {u}").replace("{j}", "{g}{u}乘{h}{u}"))  # fmt: skip
_SHAPE_ASK = table("""
perimeter: What is its perimeter? | Find the perimeter. | How long is its perimeter in {u}?
perimeter: 它的周长是多少？ | 求周长。 | 周长是多少{u}？
area: What is its area? | Find the area. | How large is its area?
area: 它的面积是多少？ | 求面积。 | 面积有多大？
third: What is the third angle? | Find the third angle. | How large is the third angle?
third: 第三个角是多少度？ | 求第三个角。
fourth: What is the fourth angle? | Find the fourth angle. | How large is the fourth angle?
fourth: 第四个角是多少度？ | 求第四个角。
rest: What area is left? | How large is the area that is left? | 剩下的面积是多少？ | 还剩多大面积？
rest perimeter: 剩下部分的周长是多少？
rest area: 剩下部分的面积是多少？
total: What is the total area? | 总面积是多少？ | 求总面积。
all: Find the area of all together.
both: Find the area of both together.
""")
_SHAPE_NOISE = table("""
noise: It is painted {color}. | Its corners are {color}. | It was made by {p}. | It belongs to {p}.
noise: {p} drew it with a {color} pen. | 它是{color}的。 | 它是{p}的。 | {p}用{color}的笔画了它。
""")


def _polygon(*sides: int) -> int:
    assert all(0 < 2 * side < sum(sides) for side in sides), sides
    return sum(sides)


def _angle(whole: int, *angles: int) -> int:
    rest = whole - sum(angles)
    assert all(0 < angle < 180 for angle in (*angles, rest)), angles
    return rest


def _without(a: int, b: int, c: int, d: int) -> int:
    assert 0 < c < a and 0 < d < b, (a, b, c, d)  # noqa: PT018
    return a * b - c * d


def _around(a: int, b: int, c: int, d: int) -> int:
    """The six sides of a rectangle without a corner."""
    assert _without(a, b, c, d) > 0
    return a + b + (a - c) + d + c + (b - d)


def _areas(*sides: int) -> int:
    return sum(a * b for a, b in zip(sides[::2], sides[1::2], strict=True))


_FORMULAS: dict[tuple[str, str], Callable[..., int]] = {
    ("rectangle", "perimeter"): lambda a, b: a + b + a + b,
    ("rectangle", "area"): _areas,
    ("square", "perimeter"): lambda a: a + a + a + a,
    ("square", "area"): lambda a: a * a,
    ("polygon", "perimeter"): _polygon,
    ("right", "area"): lambda a, b: a * b // 2 if a * b % 2 == 0 else -1,
    ("three", "third"): lambda *angles: _angle(180, *angles),
    ("four", "fourth"): lambda *angles: _angle(360, *angles),
    ("corner", "perimeter"): _around,
    ("corner", "area"): _without,
    ("corner", "rest perimeter"): _around,
    ("corner", "rest area"): _without,
    ("hole", "rest"): _without,
    ("2", "both"): _areas,
    **{(count, "total"): _areas for count in "234"},
    **{(count, "all"): _areas for count in "34"},
}


def geometry_answer(text: str) -> str:
    first, *noise, last = sentences(text)
    shape, fields = read(first, _SHAPES)
    assert len(noise) <= 1, text
    for sentence in noise:
        read(sentence, _SHAPE_NOISE)
    ask, asked = read(last, _SHAPE_ASK)
    assert asked.get("u") in (None, fields.get("u")), text
    numbers = [int(fields[key]) for key in sorted(fields) if key in "abcdefgh"]
    return str(_FORMULAS[shape, ask](*numbers))


# Steps.

_COMPARING = table("""
start: {p} has {n} {o}. | {p}有{n}{m}{o}。
*: {p} has {n} times as many as {q}. | {p}的{o}是{q}的{n}倍。
-: {p} has {n} fewer than {q}. | {p}比{q}少{n}{m}。
+: {p} has {n} more than {q}. | {p}比{q}多{n}{m}。
all: How many {o} do they have together? | 他们一共有多少{m}{o}？
one: How many {o} does {p} have? | {p}有多少{m}{o}？
""")
_PACKING = table("""
start: {p} has {k} boxes with {n} {o} each. | {p}有{k}箱{o}，每箱{n}{m}。
-: {n} are sold. | {n} are lost. | {n} are given away. | 卖掉{n}{m}。 | 送掉{n}{m}。 | 坏了{n}{m}。
-1: {n} is sold. | {n} is lost. | {n} is given away.
all: All of them go into bags of {n}. | 全部每{n}{m}装一袋。
rest: The rest goes into bags of {n}. | 剩下的每{n}{m}装一袋。
ask: How many bags are filled? | 一共装了几袋？
""")
_SHOPPING = table("""
cost: {o} cost {n} dollars each | {o}每{m}{n}元
some: {n} {o} | {n}{m}{o}
""")
_SHOPPING_ENDS = table("""
all: {costs}. {p} buys {some}. How many dollars is that? | {costs}。{p}买了{some}。一共要付多少元？
all: {costs}. {p} buys {some}. How much does it cost? | {costs}。{p}买了{some}。一共花了多少元？
rest: {costs}. {p} buys {some} and pays with {n} dollars. How much change is that?
rest: {costs}. {p} buys {some} and pays with {n} dollars. How many dollars come back?
rest: {costs}。{p}买了{some}，付了{n}元。应该找回多少元？
""")
_LEG = table("leg: for {k} hours at {n} km an hour | 以每小时{n}千米走{k}小时")
_TRAVELLING = table("""
all: A {vehicle} goes {legs}. How many km is that? | 一辆车{legs}。一共走了多少千米？
rest: A {vehicle} goes {legs}. The whole way is {n} km. How many km are left?
rest: 一辆车{legs}。全程{n}千米，还剩多少千米？
""")


def _rest(fields: Fields, used: int) -> str:
    """What is left of the whole n, or without one what was used."""
    whole = int(fields.get("n", 2 * used))
    assert whole > used, fields
    return str(whole - used)


def _shopping(text: str) -> str:
    _, fields = read(text, _SHOPPING_ENDS)
    costs = [read(each, _SHOPPING)[1] for each in re.split(", | and |，", fields["costs"])]
    some = [read(each, _SHOPPING)[1] for each in re.split(", | and |、|和", fields["some"])]
    prices = {(each["o"].lower(), each.get("m")): int(each["n"]) for each in costs}
    numbers = {(each["o"], each.get("m")): int(each["n"]) for each in some}
    assert prices.keys() == numbers.keys(), text
    return _rest(fields, sum(price * numbers[thing] for thing, price in prices.items()))


def _travelling(text: str) -> str:
    _, fields = read(text, _TRAVELLING)
    legs = re.split(", then |，再", fields["legs"])
    if "，再" in fields["legs"]:
        legs[0] = legs[0][1:]  # 先
    each = [read(leg, _LEG)[1] for leg in legs]
    return _rest(fields, sum(int(leg["n"]) * int(leg["k"]) for leg in each))


def _comparing(text: str) -> str:
    (_, start), *relations, (ask, asked) = [read(each, _COMPARING) for each in sentences(text)]
    values, last = {start["p"]: int(start["n"])}, start["p"]
    for sign, fields in relations:
        base, number = values[fields["q"]], int(fields["n"])
        last = fields["p"]
        assert last not in values, text
        values[last] = {"+": base + number, "-": base - number, "*": base * number}[sign]
        assert values[last] > 0, text
    for fields in (*(fields for _, fields in relations), asked):
        assert all(fields.get(key) in (None, start.get(key)) for key in "om"), text
    return str(sum(values.values()) if ask == "all" else values[asked["p"]])


def _packing(text: str) -> str:
    (_, start), *taken, (how, bags), (ask, _) = [read(each, _PACKING) for each in sentences(text)]
    assert (how, ask) == ("rest" if taken else "all", "ask"), text
    rest = int(start["k"]) * int(start["n"])
    for sign, fields in taken:
        assert (sign == "-1") == (fields["n"] == "1" and "m" not in fields), text
        assert fields.get("m") == start.get("m"), text
        rest -= int(fields["n"])
    bag = int(bags["n"])
    assert rest > 0 == rest % bag, text
    return str(rest // bag)


def steps_answer(text: str) -> str:
    scenes = {" cost |每.[0-9]+元": _shopping, "hour|每小时": _travelling, "boxes|箱": _packing}
    return next((act for sign, act in scenes.items() if re.search(sign, text)), _comparing)(text)
