"""Engines as processes that load the same model and then replay a schedule whenever it is their
turn (bench/engines/peers/protocol.py).

Nothing else may run meanwhile, and a turn waits for an idle machine.
"""

import json
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench.engines.install import ENVIRONMENTS, installed, python_of

__all__ = ["Engine", "Entrant", "one_argmax", "show", "started", "take_turns"]

ROOT = Path(__file__).parents[2]
LEAST, MOST = 3, 9  # turns
BUSY = 0.1  # share of the machine that others may use when a turn begins
LOADING = 300  # seconds that an engine may take to load and warm up; a replay may take half of it


class Entrant(NamedTuple):
    """An engine that is to take part.

    Attributes:
        script: its name in bench/engines/peers.
        arguments: its command line.
        environment: where it runs, as of bench.engines.install; "" for one of the script's name.
        told: what its entry says beside what the engine says of itself.
    """

    script: str
    arguments: list[str]
    environment: str = ""
    told: dict[str, Any] = {}  # noqa: RUF012 - read only

    @property
    def home(self) -> str:
        """Its environment's name."""
        return self.environment or self.script


class Engine:
    """One peer's process."""

    def __init__(self, entrant: Entrant) -> None:
        ours = {**os.environ, "PYTHONPATH": str(ROOT)}
        script = ROOT / "bench/engines/peers" / f"{entrant.script}.py"
        self.process = subprocess.Popen(
            [str(python_of(entrant.home)), str(script), *entrant.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=ours if entrant.script == "ours" else None,
        )

    def answer(self, limit: float) -> dict[str, Any]:
        """The next line that the process prints; an error after `limit` seconds, or if it ended."""
        timer = threading.Timer(limit, self.process.kill)
        timer.start()
        try:
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        return json.loads(line) if line else {"error": f"no answer within {limit:.0f} s"}

    def run(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            print("run", file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return {"error": "the process has ended"}
        return self.answer(LOADING / 2)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def started(entrants: list[Entrant]) -> Iterator[tuple[list[Engine], list[dict[str, Any]]]]:
    """Load the engines one after the other: those that run, and why the others do not."""
    engines, entries = [], []
    try:
        for each in entrants:
            name = {"engine": each.script, **each.told}
            if each.home in ENVIRONMENTS and not installed(each.home):
                entries.append({**name, "skipped": "not installed"})
                continue
            engine = Engine(each)
            ready = engine.answer(LOADING)
            if "error" in ready:
                engine.close()
                entries.append({**name, "skipped": ready["error"]})
                print(f"  {each.script}: {ready['error']}", flush=True)
                continue
            engines.append(engine)
            del ready["ready"]
            entries.append({**each.told, **ready})
            print(f"  {ready['engine']} {ready['version']}: {ready['precision']}", flush=True)
        yield engines, entries
    finally:
        for engine in engines:
            engine.close()


def take_turns(
    engines: list[Engine], entries: list[dict[str, Any]], *, seconds: float, patience: float = 30
) -> None:
    """Replay in turns and fill the entries with the seconds of each replay and their medians.

    Args:
        engines, entries: of `started`.
        seconds: of replays after which no turn beyond the third begins; nine are the most.
        patience: seconds that a replay waits for an idle machine at most.
    """
    running = [entry for entry in entries if "skipped" not in entry]
    for turn in range(MOST):
        if turn >= LEAST and sum(sum(each.get("seconds", ())) for each in running) > seconds:
            break
        for engine, entry in zip(engines, running, strict=True):
            if "skipped" in entry:
                continue
            entry.setdefault("busy_before", []).append(round(_wait_until_idle(patience), 3))
            result = engine.run()
            if "error" in result:
                entry["skipped"] = result["error"]
                continue
            entry.setdefault("seconds", []).append(round(result.pop("seconds"), 4))
            entry |= {key: value for key, value in result.items() if value is not None}
    for entry in running:
        if "skipped" not in entry:
            median = statistics.median(entry["seconds"])
            entry["expansions_per_second"] = round(entry["expansions"] / median, 3)
            entry["tokens_per_second"] = round(entry["tokens"] / median, 1)


def one_argmax(entries: list[dict[str, Any]]) -> None:
    """Refuse engines that do not agree on the most likely token after the prompt.

    Raises:
        ValueError: they do not: some engine computes something else.
    """
    first = [
        (each["argmax"], each["engine"], each["precision"]) for each in entries if "argmax" in each
    ]
    if len({token for token, *_ in first}) > 1:
        raise ValueError(f"expected one most likely token from every engine, got {first}")


def show(entries: list[dict[str, Any]]) -> None:
    """Print the speed of every engine that ran."""
    for entry in entries:
        if "seconds" in entry and "skipped" not in entry:
            print(
                f"    {entry['engine']:<22} {entry['expansions_per_second']:>8.2f} expansions/s  "
                f"{entry['tokens_per_second']:>8.0f} tokens/s  {entry['seconds']}",
                flush=True,
            )


def _busy(seconds: float = 0.5) -> float:
    """Share of all processors that worked during the next `seconds` seconds."""

    def read() -> tuple[int, int]:
        ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        return sum(ticks), ticks[3] + ticks[4]

    total, idle = read()
    time.sleep(seconds)
    later, still = read()
    return 1 - (still - idle) / max(1, later - total)


def _wait_until_idle(patience: float) -> float:
    """Wait for an idle machine, `patience` seconds at most; the share in use at the end."""
    end = time.monotonic() + patience
    while (share := _busy()) > BUSY and time.monotonic() < end:
        pass
    return share
