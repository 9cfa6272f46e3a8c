"""What the generator of one test returns for one question."""

from collections.abc import Callable
from typing import NamedTuple

from marco_fast.questions.work import Work

Accept = Callable[[str], bool]  # whether a piece of content is in the wanted split


class Draft(NamedTuple):
    """A question before its thought is written.

    Attributes:
        text: the question.
        keys: the pieces of content that decide its split, each written as `kind:content`.
        solve: writes the steps of the thought and returns the answer.
    """

    text: str
    keys: tuple[str, ...]
    solve: Callable[[Work], str]
