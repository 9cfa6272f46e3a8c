"""Questions in, tree search, fine-tuning data out: the chosen paths as ChatML messages in JSONL.

A run keeps a journal beside its output: a header that says what is being made, then one line a
question with its record and all that the filters look at. The output is written from it at the end,
whole. Which questions are searched together can change a tree (they share the decode batch, and
the prefix of their prompts), so the batches are fixed by the file alone, and a journal grows and is
resumed by whole batches: a run that was killed ends with the same bytes as one that was not.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from marco_fast import __version__
from marco_fast.data.filters import FILTERS, Limits, entry_of, refused_by
from marco_fast.data.journal import FORMAT, Journal
from marco_fast.data.questions_file import Asked, Questions
from marco_fast.forest.result import Progress
from marco_fast.search.config import SearchConfig

if TYPE_CHECKING:
    from marco_fast.engine.engine import Engine

__all__ = [
    "DataProgress",
    "Summary",
    "check_output",
    "default_batch",
    "generate_data",
    "journal_of",
]

UNFINISHED = ("interrupted", "error", "kv_full")  # stop reasons of a search that was cut short


class DataProgress(NamedTuple):
    """A run, for whoever watches it.

    Attributes:
        questions: of the whole file. done: finished, those of the journal included. kept: of them.
        new, tokens, seconds: questions finished, tokens decoded and time spent by this run alone.
    """

    questions: int
    done: int
    kept: int
    new: int
    tokens: int
    seconds: float


@dataclass
class Summary:
    """What a run did.

    Attributes:
        questions: good lines of the file. bad_lines: the others. done: searched, by whichever run.
        kept: of them. refused: by each filter; a reply counts at the first of FILTERS.
        resumed: done before this run. tokens, seconds: decoded and spent by this run.
        complete: the output is written. error: what the model raised, else None.
        interrupted: by Ctrl-C.
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

    def count(self, seen: Mapping[str, Any] | None, limits: Limits) -> None:
        """Counts one question."""
        name = refused_by(seen, limits)
        self.done += 1
        if name is None:
            self.kept += 1
        else:
            self.refused[name] += 1


def default_batch(engine: "Engine", config: SearchConfig) -> int:
    """Questions searched together: as many as fill the decode batch."""
    return -(-engine.max_branches // config.parallel)


def journal_of(out: Path) -> Path:
    """The journal beside an output."""
    return out.with_name(out.name + ".journal")


def check_output(out: Path, *, restart: bool = False) -> None:
    """Finds out before the work whether an output would be overwritten.

    Raises:
        ValueError: it exists and is not what an interrupted run left, and restart is False; or it
            is no plain file.
    """
    if out.exists() and not out.is_file():
        raise ValueError(f"expected a file as output, got {str(out)!r}, which is none")
    if out.exists() and not restart and not journal_of(out).exists():
        raise ValueError(
            f"expected an output that does not exist yet, got {str(out)!r}; "
            "--restart (restart=True) makes it anew"
        )


def generate_data(
    questions: Questions,
    out: Path,
    engine: "Engine",
    config: SearchConfig = SearchConfig(),  # noqa: B008 (frozen)
    *,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    batch: int | None = None,
    restart: bool = False,
    progress: Callable[[DataProgress], None] | None = None,
) -> Summary:
    """Searches every question and writes the replies that pass the filters, in their order.

    A run that ended early goes on where it was: `out` with ".journal" behind it holds the batches
    that are done, until `out` is written. The limits may be others then; all else must be the same.

    Args:
        questions: from read_questions; its bad lines are left out.
        out: the JSONL file; written whole, at the end.
        engine, config: as solve() takes them. With max_seconds no two runs give the same.
        limits: of the filters.
        batch: questions searched together, by default as many as fill the decode batch.
        restart: throw away a journal and, at the end, an `out` that exist.
        progress: called some ten times a second.

    Returns:
        A Summary; after Ctrl-C ("interrupted") or an exception of the model ("error") of what is
        done so far, and then without `out`.

    Raises:
        ValueError: no question, batch below 1, `out` exists, another run is at work on it, or the
            journal is of a run with other questions or options.
        OSError: a file cannot be written; what the journal holds stays.
    """
    batch = default_batch(engine, config) if batch is None else batch
    if batch < 1:
        raise ValueError(f"expected a batch of at least 1 question, got {batch}")
    if not questions.asked:
        raise ValueError("expected at least one question, got none")
    check_output(out, restart=restart)
    summary = Summary(len(questions.asked), len(questions.bad))
    header = _header(questions, engine, config, batch)
    with Journal(journal_of(out), header, restart=restart) as journal:
        if journal.fresh and not restart and out.exists():
            os.unlink(journal.path)  # a run that held the lock until now has just written it
            check_output(out)
        seen = journal.resume([each.id for each in questions.asked], batch)
        for each in seen:
            summary.count(each, limits)
        summary.resumed = summary.done
        _search(_Run(questions.asked, engine, config, limits, batch, progress), journal, summary)
        if summary.done == summary.questions:
            journal.write_output(out, limits)
            summary.complete = True
    return summary


def _header(
    questions: Questions, engine: "Engine", config: SearchConfig, batch: int
) -> dict[str, Any]:
    """All that decides what is in a journal."""
    decoding = {
        "context": engine.context,
        "device": engine.device.type,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "max_branches": engine.max_branches,
        "kv_pages": engine.cache.num_pages,
        "batch": batch,
    }
    chats = json.dumps([questions.asked, questions.bad]).encode()
    made_by = {"marco_fast": __version__, "filters": ", ".join(FILTERS), "model": engine.name}
    prompts = {
        "questions": questions.sha256,
        "chats with their system prompt": hashlib.sha256(chats).hexdigest(),
    }
    return FORMAT | made_by | prompts | decoding | config.to_dict()


class _Run(NamedTuple):
    """What stays the same during a run."""

    asked: list[Asked]
    engine: "Engine"
    config: SearchConfig
    limits: Limits
    batch: int
    progress: Callable[[DataProgress], None] | None


def _search(run: _Run, journal: Journal, summary: Summary) -> None:
    """Batch by batch until the end, Ctrl-C or an exception of the model."""
    from marco_fast.forest.solve import interrupts, solve

    began, special = time.perf_counter(), run.engine.tokenizer.all_special_tokens

    def report(done: int = 0, tokens: int = 0) -> None:
        summary.seconds = time.perf_counter() - began
        if run.progress is not None:
            new = summary.done - summary.resumed + done
            counts = (summary.questions, summary.done + done, summary.kept, new)
            run.progress(DataProgress(*counts, summary.tokens + tokens, summary.seconds))

    # Ctrl-C is caught here, over all batches: one that hits the end of a search must not get lost.
    with interrupts() as interrupted:

        def watch(now: Progress) -> None:
            if interrupted.is_set():
                raise KeyboardInterrupt
            report(now.done, now.tokens)

        report()
        while summary.done < summary.questions and not interrupted.is_set():
            part = run.asked[summary.done : summary.done + run.batch]
            chats = [each.messages for each in part]
            try:
                results = solve(chats, run.engine, run.config, progress=watch)
            except KeyboardInterrupt:
                break
            except Exception as error:
                summary.error = error
                break
            summary.tokens += sum(each.stats.tokens for each in results)
            cut = [each for each in results if each.stop_reason in UNFINISHED]
            if cut:
                summary.error = next((each.error for each in cut if each.error is not None), None)
                break
            pairs = zip(part, results, strict=True)
            entries = [entry_of(one, result, special) for one, result in pairs]
            journal.append(entries)
            for each in entries:
                summary.count(each["seen"], run.limits)
            report()
    summary.interrupted = summary.error is None and summary.done < summary.questions
