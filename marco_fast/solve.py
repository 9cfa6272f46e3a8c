"""solve(): a question, an engine and a search in one call."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, overload

from marco_fast.engine.engine import Engine
from marco_fast.forest import Forest, ProgressFunction
from marco_fast.result import SearchResult
from marco_fast.search.mcts import SearchConfig

__all__ = ["solve"]


@overload
def solve(
    question: str,
    engine: Engine,
    config: SearchConfig = ...,
    *,
    progress: bool | ProgressFunction = ...,
) -> SearchResult: ...
@overload
def solve(
    question: list[str],
    engine: Engine,
    config: SearchConfig = ...,
    *,
    progress: bool | ProgressFunction = ...,
) -> list[SearchResult]: ...
def solve(
    question: str | list[str],
    engine: Engine,
    config: SearchConfig = SearchConfig(),  # noqa: B008 (frozen)
    *,
    progress: bool | ProgressFunction = False,
) -> SearchResult | list[SearchResult]:
    """Answer a question by Marco-o1's confidence-guided tree search (arXiv 2411.14405).

    The same call gives the same tree, token for token. A list of questions is searched as one
    forest: their branches share the decode batches.

    Args:
        question: one text, or a list of texts.
        engine: an Engine; a second search on it waits for the first.
        config: the options.
        progress: True shows a live view on the terminal; a function is called with a Progress
            about ten times a second.

    Returns:
        A SearchResult, or for a list a list of them in its order. Ctrl-C ends the search and
        returns the best so far ("interrupted"); so does an exception inside the model ("error",
        with SearchResult.error) once something was decoded.

    Raises:
        ValueError: a question is empty, or does not fit into the model's context.
        KVCacheFull: the KV cache cannot hold one prompt and one branch.
    """
    questions = [question] if isinstance(question, str) else list(question)
    prompts = [_prompt(each, engine) for each in questions]
    if not questions:
        return []
    with engine.lock, _watch(progress) as report, _interrupts() as interrupted:
        results = Forest(engine, questions, prompts, config, report, interrupted).run()
    return results[0] if isinstance(question, str) else results


def _prompt(question: str, engine: Engine) -> list[int]:
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"expected a question with some text, got {question!r}")
    prompt = engine.prompt_token_ids(question)
    if len(prompt) >= engine.context:
        raise ValueError(
            f"expected a question of fewer than {engine.context} tokens with its prompt "
            f"(the context), got {len(prompt)}"
        )
    return prompt


@contextlib.contextmanager
def _watch(progress: bool | ProgressFunction) -> Iterator[ProgressFunction | None]:
    if progress is True:
        from marco_fast.live import LiveView

        with LiveView() as view:
            yield view
    else:
        yield progress or None


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that no decode step is cut in half; a second one raises."""
    event = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield event  # in another thread, or where somebody else handles Ctrl-C, it stays theirs
        return

    def on_interrupt(*_: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
