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

from marco_fast.forest.foresight import duration
from marco_fast.forest.result import Progress

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LiveView", "SafeConsole", "StderrView", "counters", "foretold"]

LINES = 6  # of the reply that is being written
TWO_COLUMNS = 56  # cells that the figures need side by side
FIRST_SECONDS, LONG = 5.0, 20.0  # when a search that nobody sees is told of, if it still takes long
WIDEST, HIGHEST = 1000, 1000  # of a console; every cell is drawn ten times a second


def counters(progress: Progress) -> list[tuple[str, str]]:
    """The figures of a running search, as name and value."""
    seconds = max(progress.seconds, 1e-9)
    rows = [
        ("expansions", f"{progress.expansions} of {progress.target}"),
        ("finished paths", f"{progress.finished_paths}"),
        ("branches", f"{progress.branches}"),
        ("seconds", f"{progress.seconds:.1f}"),
        ("tokens", f"{progress.tokens}"),
        ("tokens/s", f"{progress.tokens / seconds:.0f}"),
        ("expansions/s", f"{progress.expansions / seconds:.1f}"),
        ("KV sharing", f"{progress.sharing:.1f}x"),
    ]
    if progress.questions > 1:
        rows.insert(0, ("questions", f"{progress.done} of {progress.questions}"))
    return rows


def foretold(progress: Progress) -> str:
    """How long it still takes, in words."""
    total = f"{progress.target:,} expansions"
    if progress.expansions >= progress.target:
        return f"{total} done"
    if progress.remaining is None:
        return f"{total}; the time is known when the first path has ended"
    left = "" if progress.expansions == 0 else " more"
    earlier = "--max-seconds N to stop earlier"
    return f"about {duration(progress.remaining)}{left} for {total} ({earlier})"


def best_so_far(progress: Progress) -> str:
    """The answer that would be given now."""
    if not progress.finished or progress.answer is None:
        return "(no path has finished yet)"
    return " ".join((progress.final or progress.answer).split())


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
    """Shows each Progress that it is called with: how far it is, and what is being written.

    Where nobody sees it, one line says how long the search takes, once it is known to take long.
    """

    told = False

    def __call__(self, progress: Progress) -> None:
        if self.shown:
            self.show(lambda: self.render(progress))
        elif not self.told and not self.failed:
            self._tell(progress)

    def _tell(self, progress: Progress) -> None:
        left = progress.remaining
        if progress.seconds < FIRST_SECONDS or left is None or left < LONG:
            return
        self.told = True
        self._draw(lambda: print(foretold(progress), file=sys.stderr))

    def render(self, progress: Progress) -> Group:
        """The view, as wide as the console."""
        width, bar = self.console.width, Table.grid()
        bar.add_row(
            ProgressBar(
                total=max(1, progress.target),
                completed=progress.expansions,
                width=width,
                complete_style="cyan",
            )
        )
        shown = (progress.live or progress.thought).rstrip("\ufffd")  # half of a character
        reply = Text(shown[-LINES * width :], style="dim", overflow="fold")
        lines = list(reply.wrap(self.console, width))[-LINES:]
        grid = self._grid(counters(progress))
        return Group(bar, Text(foretold(progress)), self._best(progress), *lines, grid)

    def _best(self, progress: Progress) -> Text:
        """One line: the answer that would be given now, and how sure that is."""
        line = Text("best so far  ", style="bold")
        line.append(best_so_far(progress), style="green")
        width = self.console.width
        if progress.finished and width >= TWO_COLUMNS:
            more = f"  (support {progress.support:.2f}, confidence {progress.value:.2f})"
            line.truncate(width - len(more), overflow="ellipsis")
            line.append(more)
        line.truncate(width, overflow="ellipsis")
        return line

    def _grid(self, rows: list[tuple[str, str]]) -> Table:
        """The figures, in as many columns as there is room for."""
        grid = Table.grid(padding=(0, 2))
        columns = 2 if self.console.width >= TWO_COLUMNS else 1
        count = -(-len(rows) // columns)
        for index in range(count):
            cells = [cell for row in rows[index::count] for cell in row]
            grid.add_row(*map(Text, cells, ["cyan", ""] * columns))
        return grid
