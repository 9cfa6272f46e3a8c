"""What solve prints beside its answer, in lines that a reader understands without its code."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from marco_fast.commands.causes import STOPS

if TYPE_CHECKING:
    from marco_fast.forest.result import SearchResult
    from marco_fast.search.answer import AnswerGroup

__all__ = ["figures", "support"]

SHORT = 40  # characters of a final that a line can hold
OTHERS = 3  # other answers that are shown


def figures(result: "SearchResult") -> list[tuple[str, str]]:
    """The lines, as name and text."""
    stats, rows, votes = result.stats, [], result.tree.ended
    finished = sum(votes[node] for group in result.answers for node in group.nodes)
    if result.finished:
        if result.final and not _same(result.final, result.answer):
            rows.append(("final", _short(result.final)))
        rows.append(("support", support(result.answers[0], votes, finished)))
        rows += [("", other) for other in _others(result.answers, votes)]
    rows.append(("confidence", f"{result.confidence:.3f}"))
    speed = f"{stats.seconds:.1f} s ({stats.expansions_per_second:.1f}/s)"
    ended = f" ({STOPS[result.stop_reason]})" if result.stop_reason in STOPS else ""
    told = f"{stats.expansions} expansions in {speed}, stopped by: {result.stop_reason}{ended}"
    rows.append(("search", told))
    unfinished = stats.expansions - finished
    paths = f"{finished} finished ({stats.finished_paths} different), {unfinished} unfinished"
    rows.append(("paths", paths))
    sharing = stats.kv_tokens_path / max(1, stats.kv_tokens_unique)
    told = f"{stats.tokens} ({stats.tokens_per_second:.0f}/s), KV sharing {sharing:.1f}x"
    return [*rows, ("tokens", told)]


def support(group: "AnswerGroup", votes: Sequence[int], finished: int) -> str:
    """How many paths say what was chosen: "6 of 8 finished paths say 18 (weight 0.81)".

    Args:
        group: the answer. votes: how often a path was decoded that ends at a node.
        finished: their sum over all answers.
    """
    count = sum(votes[node] for node in group.nodes)
    said = _short(group.final) if len(group.final) <= SHORT else "this"
    if finished == 1:
        return f"the only finished path says {said}"
    verb = "says" if count == 1 else "say"
    return f"{count} of {finished} finished paths {verb} {said} (weight {group.support:.2f})"


def _others(groups: "Sequence[AnswerGroup]", votes: Sequence[int]) -> list[str]:
    """The other answers, the best first; the rest of them in one line."""
    shown, rest = groups[1 : 1 + OTHERS], groups[1 + OTHERS :]
    lines = []
    for each in shown:
        count = sum(votes[node] for node in each.nodes)
        verb = "says" if count == 1 else "say"
        lines.append(f"{count} {verb} {_short(each.final)} (weight {each.support:.2f})")
    if rest:
        weight = sum(each.support for each in rest)
        lines.append(f"{len(rest)} more answers (weight {weight:.2f})")
    return lines


def _same(final: str, answer: str) -> bool:
    return " ".join(answer.split()).casefold() == " ".join(final.split()).casefold()


def _short(text: str) -> str:
    """One line of a text, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= SHORT else line[: SHORT - 1] + "…"
