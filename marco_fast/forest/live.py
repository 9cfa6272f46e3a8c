"""The live view of a search on a terminal."""

import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from marco_fast.forest.result import Progress

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LiveView", "SafeConsole", "StderrView", "counters"]

WIDEST, HIGHEST = 1000, 1000  # of a console; every cell is drawn ten times a second


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


class SafeConsole(Console):
    """rich's console; what the environment says of its size is no reason to fail."""

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValueError:  # COLUMNS=² counts as digits
            super().__init__(**options, width=80, height=25)

    @property
    def size(self) -> ConsoleDimensions:
        """The terminal's; where it claims none (COLUMNS=0) or too much to draw, a usual one."""
        width, height = super().size
        return ConsoleDimensions(min(width, WIDEST) or 80, min(height, HIGHEST) or 25)

    @size.setter
    def size(self, new: tuple[int, int]) -> None:
        Console.size.fset(self, new)  # type: ignore[attr-defined]

    def on_broken_pipe(self) -> None:
        """Not the end of the process, as rich has it: an error like any other."""
        raise


class StderrView:
    """A context manager that shows what show() was given last, and clears it at the end.

    Written to standard error, so that standard output holds results alone; silent where standard
    error is not a terminal that can move its cursor, and once it can no longer be written.
    """

    def __init__(self) -> None:
        self.console = SafeConsole(stderr=True, highlight=False)
        if not _isatty(sys.stderr) or self.console.is_dumb_terminal:  # whatever FORCE_COLOR says
            self.console = SafeConsole(stderr=True, highlight=False, force_terminal=False)
        self.live = Live(
            console=self.console, transient=True, auto_refresh=False,
            redirect_stdout=_isatty(sys.stdout),
        )  # fmt: skip
        self.failed = False

    @property
    def shown(self) -> bool:
        """Whether anybody sees it."""
        return self.console.is_terminal and not self.failed

    def __enter__(self) -> "Self":
        if self.shown:
            self._draw(self.live.start)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._draw(self.live.stop)

    def show(self, view: Callable[[], RenderableType]) -> None:
        """What the function makes takes the place of what was shown before."""
        if self.shown:
            self._draw(lambda: self.live.update(view(), refresh=True))

    def _draw(self, draw: Callable[[], None]) -> None:
        """A view that cannot be drawn, such as on a terminal that is gone, stops no search."""
        try:
            draw()
        except Exception:
            self.failed = True


def _isatty(stream: Any) -> bool:
    try:
        return stream is not None and bool(stream.isatty())
    except (OSError, ValueError):
        return False


class LiveView(StderrView):
    """Shows each Progress that it is called with."""

    def __call__(self, progress: Progress) -> None:
        self.show(lambda: self._render(progress))

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
