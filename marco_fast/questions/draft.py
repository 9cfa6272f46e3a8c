"""What a generator of one test hands back, and what decides the split."""

from collections.abc import Callable
from typing import NamedTuple

from marco_fast.questions.work import Work

Accept = Callable[[str], bool]  # whether a piece of content belongs to the wanted split


class Draft(NamedTuple):
    """A question before its thought is written.

    Attributes:
        text: the question.
        keys: the pieces of content that decide its split, each named `kind:content`.
        solve: writes the steps of the thought, returns the answer.
    """

    text: str
    keys: tuple[str, ...]
    solve: Callable[[Work], str]
