"""Questions in, tree search, fine-tuning data out: the chosen paths as ChatML messages in JSONL.

generate_data keeps a journal beside its output. The journal has a header, which says what is being
made, and one entry per searched question: the line for the output and the figures that the filters
look at. The output is written from the journal at the end, whole.

A tree can depend on which questions are searched together, because they share the decode batch and
the common prefix of their prompts. So the input file alone decides the batches, and a journal grows
and is resumed by whole batches: a run that was killed and started again writes the same bytes as a
run that was not.
"""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marco_fast import __version__
from marco_fast.data.filters import FILTERS, Limits, entry_of
from marco_fast.data.journal import FORMAT, Journal, beside, header_of
from marco_fast.data.questions_file import Asked, Questions
from marco_fast.data.summary import DataProgress, DataSummary
from marco_fast.files import target_of
from marco_fast.forest.result import Progress
from marco_fast.search.config import SearchConfig

if TYPE_CHECKING:
    from marco_fast.engine.engine import Engine

__all__ = [
    "DataProgress",
    "DataSummary",
    "check_output",
    "default_batch",
    "generate_data",
    "journal_of",
    "kv_tokens_of",
]

UNFINISHED = ("interrupted", "error", "kv_full")  # stop reasons of a search that ended too early


def default_batch(engine: "Engine", config: SearchConfig) -> int:
    """The number of questions whose branches fill the decode batch."""
    return -(-engine.max_branches // config.parallel)


def journal_of(out: str | os.PathLike[str]) -> Path:
    """The path of the journal that belongs to an output, however a link names it."""
    return beside(_target(out), ".journal")


def kv_tokens_of(out: str | os.PathLike[str]) -> int | None:
    """What the KV cache held in the run that began an output's journal; None without a journal.

    A run that goes on needs a cache of that size, however much memory is free by now.
    """
    tokens = header_of(journal_of(out)).get("kv_tokens")
    return tokens if isinstance(tokens, int) else None


def _target(out: str | os.PathLike[str]) -> Path:
    try:
        return Path(target_of(out, "the output"))
    except ValueError as error:
        raise ValueError(f"expected a file as output: {error}") from None


def check_output(out: str | os.PathLike[str], *, restart: bool = False) -> None:
    """Refuses an output that a run would overwrite, before any work is done.

    Raises:
        ValueError: the output exists, has no journal of an unfinished run, and restart is False;
            or it is not a regular file.
    """
    if _target(out).exists() and not restart and not journal_of(out).exists():
        raise ValueError(
            f"expected an output that does not exist yet, got {str(out)!r}; "
            "--restart (restart=True) makes it anew"
        )


def generate_data(
    questions: Questions,
    out: str | os.PathLike[str],
    engine: "Engine",
    config: SearchConfig = SearchConfig(),  # noqa: B008 (frozen)
    *,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    batch: int | None = None,
    restart: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: Callable[[DataProgress], None] | None = None,
) -> DataSummary:
    """Search every question and write the replies that pass the filters, in their order.

    A run that ended early can be continued by the same call: until `out` is written, the finished
    batches are in its journal, the file of that name with ".journal" at its end. The second call
    may have other limits; everything else must be the same. Where the limits refuse every reply,
    `out` is not written either, and the same call with others searches nothing again; a UserWarning
    says so as soon as the first batch of a run has kept nothing.

    Args:
        questions: from read_questions; its bad lines are left out.
        out: the JSONL file, written whole at the end; the file behind it, if it is a link.
        engine, config: as solve() takes them. With max_seconds the same call gives other trees.
        limits: of the filters.
        batch: how many questions are searched together; by default as many as fill the decode
            batch.
        restart: discard a journal that exists, and at the end replace an `out` that exists.
        chat_template_kwargs: of the model's chat template, as solve() takes them.
        progress: a function that is called with a DataProgress about ten times per second.

    Returns:
        A DataSummary. If Ctrl-C ("interrupted") or an exception of the model ("error") ended the
        run, it counts what is done so far, and `out` is not written.

    Raises:
        ValueError: there is no question, batch is below 1, `out` exists, another run is writing
            it, or its journal was begun with other questions or options.
        OSError: a file cannot be written; the entries of the journal stay.
    """
    batch = default_batch(engine, config) if batch is None else batch
    if batch < 1:
        raise ValueError(f"expected a batch of at least 1 question, got {batch}")
    if not questions.asked:
        raise ValueError("expected at least one question, got none")
    check_output(out, restart=restart)
    summary = DataSummary(len(questions.asked), len(questions.bad))
    template = _template(chat_template_kwargs)
    header = _header(questions, engine, config, batch) | {"chat_template_kwargs": template}
    with Journal(journal_of(out), header, restart=restart) as journal:
        if journal.fresh and not restart and _target(out).exists():
            # A run that held the lock until now has just written the output.
            journal.discard()
            check_output(out)
        seen = journal.resume([each.id for each in questions.asked], batch)
        for each in seen:
            summary.count(each, limits)
        summary.resumed = summary.done
        _search(
            _Run(
                questions.asked, engine, config, limits, batch, template, progress, journal, summary
            )
        )
        if summary.done == summary.questions and summary.kept:
            journal.write_output(_target(out), limits)
            summary.complete = True
    return summary


def _template(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The options of the chat template, checked."""
    if options is None:
        return None
    from marco_fast.engine.template_options import chat_options

    return chat_options(options)


def _header(
    questions: Questions, engine: "Engine", config: SearchConfig, batch: int
) -> dict[str, Any]:
    """The header of a journal: everything that decides what its entries say."""
    decoding = {
        "context": engine.context,
        "device": engine.device.type,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "max_branches": engine.max_branches,
        "kv_tokens": engine.cache.num_pages * engine.cache.page_size,
        "batch": batch,
    }
    chats = json.dumps([questions.asked, questions.bad]).encode()
    made_by = {"marco_fast": __version__, "filters": ", ".join(FILTERS), "model": engine.name}
    prompts = {
        "questions": questions.sha256,
        "chats with their system prompt": hashlib.sha256(chats).hexdigest(),
    }
    return FORMAT | made_by | prompts | decoding | config.to_dict()


@dataclass
class _Run:
    """One run of generate_data: what it searches, and where its entries and counts go."""

    asked: list[Asked]
    engine: "Engine"
    config: SearchConfig
    limits: Limits
    batch: int
    template: dict[str, Any] | None
    progress: Callable[[DataProgress], None] | None
    journal: Journal
    summary: DataSummary
    began: float = field(default_factory=time.perf_counter)

    def report(self, done: int = 0, tokens: int = 0) -> None:
        """Tells the progress function; the batch being searched has so many questions done."""
        summary = self.summary
        summary.seconds = time.perf_counter() - self.began
        if self.progress is not None:
            new = summary.done - summary.resumed + done
            counts = (summary.questions, summary.done + done, summary.kept, new)
            self.progress(DataProgress(*counts, summary.tokens + tokens, summary.seconds))

    def search_batch(self, watch: Callable[[Progress], None]) -> bool:
        """Searches the next batch and adds its entries to the journal.

        Returns:
            False if the batch was not finished; nothing is added then.
        """
        from marco_fast.forest.solve import solve

        summary = self.summary
        part = self.asked[summary.done : summary.done + self.batch]
        chats = [each.messages for each in part]
        try:
            results = solve(
                chats, self.engine, self.config, chat_template_kwargs=self.template, progress=watch
            )
        except KeyboardInterrupt:
            return False
        except Exception as error:
            summary.error = error
            return False
        summary.tokens += sum(each.stats.tokens for each in results)
        cut = [each for each in results if each.stop_reason in UNFINISHED]
        if cut:
            summary.error = next((each.error for each in cut if each.error is not None), None)
            return False
        special = self.engine.tokenizer.all_special_tokens
        pairs = zip(part, results, strict=True)
        entries = [entry_of(asked, result, special) for asked, result in pairs]
        self.journal.append(entries)
        for each in entries:
            summary.count(each["seen"], self.limits)
        return True


def _search(run: _Run) -> None:
    """Searches batch after batch until the end, Ctrl-C or an exception of the model."""
    from marco_fast.forest.interrupts import interrupts

    summary = run.summary
    # One handler of Ctrl-C for all batches: an interrupt just as a search ends must not get lost.
    with interrupts() as interrupted:

        def watch(now: Progress) -> None:
            if interrupted.is_set():
                raise KeyboardInterrupt
            run.report(now.done, now.tokens)

        run.report()
        while summary.done < summary.questions and not interrupted.is_set():
            first = summary.done == summary.resumed
            if not run.search_batch(watch):
                break
            run.report()
            if first and not summary.kept:
                warnings.warn(summary.why_nothing(), stacklevel=3)
    summary.interrupted = summary.error is None and summary.done < summary.questions
