"""Writing a thought: steps, digit-by-digit arithmetic, and at most one slip, if it is asked for.

Sums are worked out column by column from the lowest digit, so that every written result depends on
single digits and one carry. A `Work` counts the spots where a slip can happen; it writes a wrong
value at the spot `slip_at`, and works out everything after it correctly from the wrong value.
"""

import random
from collections.abc import Sequence


class Work:
    """The steps of one thought.

    Args:
        slip_at: index of the spot to get wrong; None: everything is right.
        rng: chooses the wrong value; needed with slip_at.

    Attributes:
        steps: the steps written so far.
        spots: how many spots there were so far.
        slip_step: index of the wrong step; None before the slip.
    """

    def __init__(self, slip_at: int | None = None, rng: random.Random | None = None) -> None:
        self.steps: list[str] = []
        self.spots = 0
        self.slip_step: int | None = None
        self.rng = rng or random.Random(0)
        self._slip_at = slip_at

    def write(self, text: str) -> None:
        """Adds a step."""
        self.steps.append(text)

    def write_rows(self, label: str, items: list[str], width: int) -> None:
        """Adds the items as steps of at most `width` items, each step after the label."""
        for begin in range(0, len(items), width):
            self.write(f"{label} {', '.join(items[begin : begin + width])}.")

    def slips(self) -> bool:
        """Counts one spot; True if the value that is written there has to be wrong."""
        here = self.spots == self._slip_at
        self.spots += 1
        if here:
            self.slip_step = len(self.steps)
        return here

    def add(self, a: int, b: int) -> tuple[str, int]:
        """(text of the work, a + b) for a, b >= 0."""
        slip = self._slip_column(max(a, b))
        if a < 10 and b < 10:
            total = _nudge(a + b, 99, self.rng) if slip == 0 else a + b
            return f"{a}+{b}={total}", total
        parts, digits, carry = [], [], 0
        for power, (x, y) in enumerate(_columns(a, b)):
            column = x + y + carry
            if power == slip:
                column = _nudge(column, 19, self.rng)
            parts.append(f"{x}+{y}{'+1' if carry else ''}={column}")
            digits.append(column % 10)
            carry = column // 10
        total = _number([*digits, carry])
        return f"{a}+{b}: {', '.join(parts)}, so {total}", total

    def subtract(self, a: int, b: int) -> tuple[str, int]:
        """(text of the work, a - b); ValueError if a < b, which an earlier slip can cause."""
        if a < b:
            raise ValueError(f"expected a >= b, got {a} and {b}")
        slip = self._slip_column(a)
        if a < 10:
            rest = _nudge(a - b, 9, self.rng) if slip == 0 else a - b
            return f"{a}-{b}={rest}", rest
        parts, digits, borrow = [], [], 0
        for power, (x, y) in enumerate(_columns(a, b)):
            top = x + 10 if x < y + borrow else x
            column = top - y - borrow
            if power == slip:
                column = _nudge(column, 9, self.rng)
            parts.append(f"{top}-{y}{'-1' if borrow else ''}={column}")
            digits.append(column)
            borrow = int(top != x)
        rest = _number(digits)
        return f"{a}-{b}: {', '.join(parts)}, so {rest}", rest

    def scale(self, a: int, digit: int) -> tuple[str, int]:
        """(text of the work, a * digit) for 1 <= digit <= 9."""
        slip = self._slip_column(a)
        if a < 10:
            product = _nudge(a * digit, 99, self.rng) if slip == 0 else a * digit
            return f"{a}*{digit}={product}", product
        parts, digits, carry = [], [], 0
        for power, (x, _) in enumerate(_columns(a, 0)):
            column = x * digit + carry
            if power == slip:
                column = _nudge(column, 89, self.rng)
            parts.append(f"{x}*{digit}{f'+{carry}' if carry else ''}={column}")
            digits.append(column % 10)
            carry = column // 10
        product = _number([*digits, carry])
        return f"{a}*{digit}: {', '.join(parts)}, so {product}", product

    def divide(self, a: int, digit: int) -> tuple[str, int]:
        """(text of the work, a / digit) for 2 <= digit <= 9; ValueError if there is a rest."""
        if a % digit:
            raise ValueError(f"expected a multiple of {digit}, got {a}")
        slip = self._slip_column(max(1, a // digit))
        if a < 10 * digit:
            quotient = _nudge(a // digit, 9, self.rng) if slip == 0 else a // digit
            return f"{a}/{digit}={quotient}", quotient
        parts: list[str] = []
        result = rest = 0
        columns = len(str(a))
        for power in reversed(range(columns)):
            part = rest * 10 + a // 10**power % 10
            quotient, rest = divmod(part, digit)
            if not parts and not quotient and power:
                continue
            if power == slip:
                quotient = _nudge(quotient, 9, self.rng)
            parts.append(f"{part}/{digit}={quotient} rest {rest}")
            result = result * 10 + quotient
        return f"{a}/{digit}: {', '.join(parts)}, so {result}", result

    def multiply(self, a: int, b: int) -> int:
        """Writes the steps of a * b, each below 100; returns the product."""
        if a < 10:
            a, b = b, a
        if b < 10:
            text, product = self.scale(a, b)
            self.write(f"{text}.")
            return product
        total, tens = 0, 0
        if b % 10:
            text, total = self.scale(a, b % 10)
            self.write(f"{text}.")
        text, tens = self.scale(a, b // 10)
        self.write(f"{text}, times 10 is {tens * 10}.")
        if not b % 10:
            return tens * 10
        text, total = self.add(tens * 10, total)
        self.write(f"{text}.")
        return total

    def total(self, numbers: Sequence[int]) -> int:
        """Writes the running sum of the numbers, one step per addition; returns the sum."""
        result = numbers[0]
        for number in numbers[1:]:
            text, result = self.add(result, number)
            self.write(f"{text}.")
        return result

    def _slip_column(self, largest: int) -> int:
        """The column (0: the ones) to get wrong, or -1."""
        return self.rng.randrange(len(str(largest))) if self.slips() else -1


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    width = max(len(str(a)), len(str(b)))
    return [(a // 10**power % 10, b // 10**power % 10) for power in range(width)]


def _number(digits: Sequence[int]) -> int:
    return sum(digit * 10**power for power, digit in enumerate(digits))


def _nudge(value: int, largest: int, rng: random.Random) -> int:
    """A wrong value: `value` plus or minus 1 or 2, within 0..largest."""
    near = [value + d for d in (-2, -1, 1, 2) if 0 <= value + d <= largest]
    return rng.choice(near)
