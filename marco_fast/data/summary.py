"""How far generate_data is, and what it did."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from marco_fast.data.filters import ADVICE, FILTERS, Limits, refused_by

__all__ = ["DataProgress", "DataSummary"]


class DataProgress(NamedTuple):
    """How far generate_data is, for a progress function.

    Attributes:
        questions: good lines of the input file.
        done: questions searched so far, by this run and earlier ones.
        kept: replies among them that pass the filters.
        new, tokens, seconds: questions searched, tokens decoded and time spent by this run alone.
    """

    questions: int
    done: int
    kept: int
    new: int
    tokens: int
    seconds: float


@dataclass
class DataSummary:
    """What generate_data did.

    Attributes:
        questions, bad_lines: lines of the input file with and without a question.
        done: questions searched so far, by this run and earlier ones.
        kept: replies among them that pass the filters.
        refused: replies that each filter refused; a reply counts for the first of FILTERS alone.
        resumed: questions that earlier runs had searched.
        tokens, seconds: tokens decoded and time spent by this run alone.
        complete: whether the output is written; it is not where no reply was kept.
        interrupted: whether Ctrl-C ended the run.
        error: the exception of the model that ended the run, else None.
    """

    questions: int
    bad_lines: int
    done: int = 0
    kept: int = 0
    refused: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FILTERS, 0))
    resumed: int = 0
    tokens: int = 0
    seconds: float = 0.0
    complete: bool = False
    interrupted: bool = False
    error: BaseException | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        error = None if self.error is None else f"{type(self.error).__name__}: {self.error}"
        return vars(self) | {"error": error}

    def why_nothing(self) -> str:
        """Which filters refused the replies of the questions so far, and what may be changed."""
        names = sorted(filter(self.refused.get, self.refused), key=lambda each: -self.refused[each])
        refused = (
            f"{self.refused[name]} by the filter {name!r} ({ADVICE[name][0]}: {ADVICE[name][1]})"
            for name in names
        )
        return f"of {self.done} questions no reply was kept; refused: {', '.join(refused)}"

    def count(self, seen: Mapping[str, Any] | None, limits: Limits) -> None:
        """Counts a question, by what the journal says of its reply."""
        name = refused_by(seen, limits)
        self.done += 1
        if name is None:
            self.kept += 1
        else:
            self.refused[name] += 1
