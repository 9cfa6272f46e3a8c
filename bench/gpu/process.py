"""A part of the run in a child process, where a failure costs no more than the current case.

The child is a fork, so that a part starts without importing torch again; the parent never touches
the GPU. Rows come through a pipe as they are measured. After a crash, a broken context or a graph
that could not be captured, another child goes on with the case after it, while there is time.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.gpu.machine import CaptureFailed, Case, Machine

__all__ = ["PartEnd", "die_with_parent", "in_child", "run_part"]

Cases = Callable[[Machine], Iterator[Case]]
Emit = Callable[[dict], None]

GRACE = 4.0  # seconds that a child has after its deadline to finish its case
START = 3.0  # seconds that must be left to start another child


@dataclass
class PartEnd:
    """How a part ended.

    Attributes:
        ended: "ok", "out of time" (some cases were not begun), or what went wrong at last.
        seconds: how long it took.
        left: the names of cases that were not begun, where the child could still tell.
    """

    ended: str
    seconds: float
    left: list[str] = field(default_factory=list)


def run_part(cases: Cases, machine: Machine, seconds: float, log: Path, emit: Emit) -> PartEnd:
    """Run a part's cases in child processes, and hand every row to `emit` as it comes.

    Args:
        cases: a generator of the part's cases.
        machine: what the child gets; its deadline is set here.
        seconds: the part's budget.
        log: a file that gets what the child prints.
        emit: called with {"case": name, ...}; a case that failed has "error".
    """
    begin = time.monotonic()
    deadline = begin + seconds
    skip = 0
    while True:
        machine.deadline = deadline
        at, told = _run_child(cases, machine, skip, deadline + GRACE, log, emit)
        spent = time.monotonic() - begin
        if told.get("ended") in ("ok", "out of time"):
            return PartEnd(told["ended"], spent, told.get("left", []))
        went_wrong = told["wrong"]
        # The child failed outside of a case: another try would end the same way.
        if at is None or told.get("listing"):
            return PartEnd(went_wrong, spent)
        skip, name = at[0] + 1, at[1]
        if not told.get("reported"):
            emit({"case": name, "error": went_wrong, "log": tail(log)})
        if time.monotonic() > deadline - START:
            return PartEnd(f"out of time after: {went_wrong}", time.monotonic() - begin)


def _run_child(
    cases: Cases, machine: Machine, skip: int, limit: float, log: Path, emit: Emit
) -> tuple[tuple[int, str] | None, dict[str, Any]]:
    """(the last case that was begun, how the child ended)."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(cases, machine, skip, theirs, log))
    child.start()
    theirs.close()
    at: tuple[int, str] | None = None
    ended: dict[str, Any] = {}
    try:
        while ours.poll(max(0.0, limit - time.monotonic())):
            message = ours.recv()
            if "begin" in message:
                at = message["begin"], message["case"]
            elif "row" in message:
                emit(message["row"])
            else:
                ended = message
        ended.setdefault("wrong", "killed: its time was over")
    except (EOFError, OSError):  # the child has closed its end
        child.join(GRACE)
    finally:
        _kill(child.pid)
        child.join()
        ours.close()
    if not ended:
        code = child.exitcode or 0
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        ended = {"wrong": f"crashed: {cause}"}
    return at, ended


def in_child(function: Callable[[], Any]) -> Any:
    """The result of a function in a forked process, which may touch the GPU.

    Raises:
        RuntimeError: it raised, or the process crashed.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def run() -> None:
        die_with_parent()
        try:
            theirs.send((function(), None))
        except BaseException as error:
            theirs.send((None, f"{type(error).__name__}: {error}"))
        os._exit(0)

    child = context.Process(target=run)
    child.start()
    theirs.close()
    try:
        result, wrong = ours.recv()
    except EOFError:
        result, wrong = None, "its process crashed"
    child.join()
    if wrong:
        raise RuntimeError(wrong)
    return result


def _kill(pid: int | None) -> None:
    """Kill the child and every process that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if pid is not None:
            os.killpg(pid, signal.SIGKILL)


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, even by SIGKILL."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _child(cases: Cases, machine: Machine, skip: int, pipe: Connection, log: Path) -> None:
    os.setsid()
    die_with_parent()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        _run_cases(cases, machine, skip, pipe)
    except BaseException as error:  # outside of a case: its list could not be made
        traceback.print_exc()
        pipe.send({"wrong": f"{type(error).__name__}: {error}", "listing": True})
    pipe.close()
    sys.stdout.flush()
    os._exit(0)  # no destructor of a broken context


def _run_cases(cases: Cases, machine: Machine, skip: int, pipe: Connection) -> None:
    listener = CompilationListener(machine)
    for i, case in enumerate(iterator := cases(machine)):
        if i < skip:
            continue
        if machine.out_of_time:
            pipe.send({"ended": "out of time", "left": [case.name, *(c.name for c in iterator)]})
            return
        pipe.send({"begin": i, "case": case.name})
        begin = time.monotonic()
        wrong: BaseException | None = None
        row: dict[str, Any] = {"case": case.name}
        try:
            row |= case.run()
            machine.wait()
        except Exception as error:  # a failing case must not stop the others
            wrong = error
            row["error"] = f"{type(error).__name__}: {error}"
            row["traceback"] = traceback.format_exc()
            traceback.print_exc()
        row["seconds"] = round(time.monotonic() - begin, 2)
        if compiled := listener.taken():
            row["compiled"] = compiled
        pipe.send({"row": row})
        if wrong is not None and not _usable(machine, wrong):
            pipe.send({"wrong": row["error"], "reported": True})
            return
        _free(machine)
    pipe.send({"ended": "ok"})


def _usable(machine: Machine, error: BaseException) -> bool:
    """Whether the process can go on after an error: an illegal access breaks its context."""
    if isinstance(error, CaptureFailed):
        return False
    try:
        machine.wait()
    except RuntimeError:
        return False
    return True


def _free(machine: Machine) -> None:
    if machine.mode == "gpu":
        import torch

        from marco_fast.kernels import launch

        torch.cuda.empty_cache()
        launch.forget_arrivals()  # the graphs that hold them are gone


class CompilationListener:
    """Notes the kernels that were compiled during a case, because the cache did not hold them."""

    def __init__(self, machine: Machine) -> None:
        self.names: list[str] = []
        if machine.mode == "gpu":
            from triton import knobs

            knobs.compilation.listener = self.listen

    def listen(self, *, src: Any, cache_hit: bool, **others: object) -> None:
        if not cache_hit:
            self.names.append(src.name)

    def taken(self) -> list[str]:
        names, self.names = self.names, []
        return names


def tail(log: Path, lines: int = 12) -> list[str]:
    """The last lines that a child printed."""
    try:
        return log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    except OSError:
        return []
