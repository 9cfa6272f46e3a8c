"""The live view of a search on a terminal."""

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from marco_fast.forest.result import Progress

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LiveView", "StderrView", "counters"]


def counters(progress: Progress) -> list[tuple[str, str]]:
    """The figures of a running search, as name and value."""
    seconds = max(progress.seconds, 1e-9)
    rows = [
        ("value", "-" if progress.answer is None else f"{progress.value:.3f}"),
        ("expansions", f"{progress.expansions} of {progress.target}"),
        ("expansions/s", f"{progress.expansions / seconds:.1f}"),
        ("tokens", f"{progress.tokens}"),
        ("tokens/s", f"{progress.tokens / seconds:.0f}"),
        ("branches", f"{progress.branches}"),
        ("KV sharing", f"{progress.sharing:.1f}x"),
        ("seconds", f"{progress.seconds:.1f}"),
    ]
    if progress.questions > 1:
        rows.insert(0, ("questions", f"{progress.done} of {progress.questions}"))
    return rows


class StderrView:
    """A context manager that shows what show() was given last, and clears it at the end.

    Written to standard error, so that standard output holds results alone; silent where standard
    error is not a terminal.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.live = Live(console=self.console, transient=True, auto_refresh=False)

    def __enter__(self) -> "Self":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def show(self, view: RenderableType) -> None:
        """Takes the place of what was shown before."""
        self.live.update(view, refresh=True)


class LiveView(StderrView):
    """Shows each Progress that it is called with."""

    def __call__(self, progress: Progress) -> None:
        if self.console.is_terminal:
            self.show(self._render(progress))

    def _render(self, progress: Progress) -> Group:
        width = self.console.width
        best = "(none yet)" if progress.answer is None else " ".join(progress.answer.split())
        line = Text("best so far  ", style="bold")
        line.append(best, style="green")
        line.truncate(width, overflow="ellipsis")
        shown = progress.thought or progress.live
        thought = Text(shown[-4 * width :], style="dim", overflow="fold")
        lines = thought.wrap(self.console, width)
        grid = Table.grid(padding=(0, 2))
        rows = counters(progress)
        half = (len(rows) + 1) // 2
        for index in range(half):
            cells = [*rows[index], *(rows[index + half] if index + half < len(rows) else ("", ""))]
            grid.add_row(*map(Text, cells, ["cyan", "", "cyan", ""]))
        bar = Table.grid()
        bar.add_row(
            ProgressBar(
                total=max(1, progress.target),
                completed=progress.expansions,
                width=width,
                complete_style="cyan",
            )
        )
        return Group(bar, line, *lines[-6:], grid)
