"""solve(): a question, an engine and a search in one call."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from marco_fast.engine.engine import Engine
from marco_fast.engine.template_options import chat_options
from marco_fast.forest.forest import Forest, ProgressFunction
from marco_fast.forest.interrupts import interrupts
from marco_fast.forest.result import SearchResult
from marco_fast.search.config import SearchConfig
from marco_fast.search.marco import UNTEMPLATED_SYSTEM, Chat, as_messages, untemplated_prompt
from marco_fast.search.numbers import shown
from marco_fast.search.replies import ReplyFormat, reply_format

__all__ = ["solve"]

ENDING_TOKENS = 32  # of a prompt; a thought that it opens, or closes at once, ends it


@overload
def solve(  # type: ignore[overload-overlap]  # an empty list is a list of questions
    question: str | Chat,
    engine: Engine,
    config: SearchConfig = ...,
    *,
    system: str | None = ...,
    chat_template_kwargs: Mapping[str, Any] | None = ...,
    progress: bool | ProgressFunction = ...,
) -> SearchResult: ...
@overload
def solve(
    question: Sequence[str | Chat],
    engine: Engine,
    config: SearchConfig = ...,
    *,
    system: str | None = ...,
    chat_template_kwargs: Mapping[str, Any] | None = ...,
    progress: bool | ProgressFunction = ...,
) -> list[SearchResult]: ...
def solve(
    question: str | Chat | Sequence[str | Chat],
    engine: Engine,
    config: SearchConfig = SearchConfig(),  # noqa: B008 (frozen)
    *,
    system: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool | ProgressFunction = False,
) -> SearchResult | list[SearchResult]:
    """Answer a question by Marco-o1's confidence-guided tree search (arXiv 2411.14405).

    The same call gives the same tree, token for token. A list of questions is searched as one
    forest: their branches share the decode batches, and their prompts what they begin with. Prompts
    are then cut into pieces elsewhere, so that a 16-bit model may round otherwise, and draw other
    tokens, than for one of the questions alone.

    Args:
        question: one text; one chat, a list of messages {"role": ..., "content": ...} that ends
            with the user's; or a list of texts and chats.
        engine: an Engine; a search of another thread on it waits for the first.
        config: the options.
        system: the system prompt in front of every question: a text, or "marco-o1" for the one
            that Marco-o1 was trained with. By default what the model's chat template does without.
        chat_template_kwargs: options of the model's chat template, such as
            {"enable_thinking": False}: texts to values of JSON. One that the template does not know
            is a UserWarning.
        progress: True shows a live view on the terminal; a function is called with a Progress
            about ten times a second: with the best answer so far, and the text of the path that
            is being decoded with the highest confidence. When it raises, that is a warning and it
            is not called any more; a KeyboardInterrupt in it is Ctrl-C.

    Returns:
        A SearchResult, or for a list a list of them in its order. Ctrl-C ends the search and
        returns the best so far ("interrupted"); so does an exception inside the model or a function
        of the caller's ("error", with SearchResult.error) once something was decoded. A path that
        fills the KV cache ends there; a question whose prompt leaves no page for one branch has
        the stop reason "kv_full", with its error.

    Raises:
        ValueError: config or progress is of another type; chat_template_kwargs are not as above, or
            name what is set otherwise, such as "tools" or "tokenize"; a question is empty or not
            Unicode, a chat is not as above or not what the model's template takes, one does not fit
            into the model's context, config.top_k is above the model's vocabulary, or the engine is
            closed, is searching in this thread already (a function of the caller's that searches
            needs an engine of its own), or was searching when this process was forked.
        KVCacheFull: the KV cache cannot hold one prompt and one branch, of any question.
    """
    if not isinstance(config, SearchConfig):
        raise ValueError(f"expected a SearchConfig, got {shown(config)}")
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise ValueError(f"expected progress to be True or a function, got {shown(progress)}")
    single = not isinstance(question, Sequence) or isinstance(question, str | bytes)
    single = single or any(isinstance(each, Mapping) for each in question)
    chats = [as_messages(each, system) for each in ([question] if single else question)]  # type: ignore[arg-type]
    options = chat_options(chat_template_kwargs)
    prompts = [_prompt(messages, engine, options) for messages in chats]
    pairs = zip(chats, prompts, strict=True)
    forms = [_form(messages, prompt, engine, config) for messages, prompt in pairs]
    if not chats:
        return []
    with engine.lock, _watch(progress) as report, interrupts() as interrupted:
        results = Forest(engine, chats, prompts, forms, config, report, interrupted).run()
    return results[0] if single else results


def _prompt(messages: list[dict[str, str]], engine: Engine, options: dict[str, Any]) -> list[int]:
    prompt = engine.prompt_token_ids(messages, untemplated_prompt(messages), options)
    if len(prompt) >= engine.context:
        raise ValueError(
            f"expected a question of fewer than {engine.context} tokens with its prompt "
            f"(the context), got {len(prompt)}"
        )
    return prompt


def _form(
    messages: list[dict[str, str]], prompt: list[int], engine: Engine, config: SearchConfig
) -> ReplyFormat:
    """How the replies to a prompt are cut: what the model's template and the system prompt show."""
    template = engine.tokenizer.chat_template
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    shown = f"{template}{system}" if template is not None else system or UNTEMPLATED_SYSTEM
    ending: list[bytes] = []  # from the last control token on, which stands for no bytes
    for piece in (engine.token_bytes[token] for token in reversed(prompt)):
        if not piece or len(ending) == ENDING_TOKENS:
            break
        ending.append(piece)
    return reply_format(config.reply, shown, b"".join(reversed(ending)).decode(errors="replace"))


@contextlib.contextmanager
def _watch(progress: bool | ProgressFunction) -> Iterator[ProgressFunction | None]:
    if progress is True:
        from marco_fast.forest.live import LiveView

        with LiveView() as view:
            yield view
    else:
        yield progress or None
