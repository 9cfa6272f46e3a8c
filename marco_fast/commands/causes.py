"""Why a search has no finished path, and what its user can change: what is true of this one."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from marco_fast.search.config import SearchConfig

if TYPE_CHECKING:
    from marco_fast.engine.engine import Engine
    from marco_fast.forest.result import SearchResult

__all__ = ["STOPS", "Room", "no_effect", "path_ends", "room_of", "why_unfinished"]

# What ended a search before all was done, for a reader who did not write it.
STOPS = {
    "tokens": "--max-tokens are used up",
    "seconds": "--max-seconds are over",
    "exhausted": "every path has ended, there is nothing left to expand",
    "decided": "the answer cannot change any more",
    "interrupted": "this is the best so far",
    "kv_full": "the KV cache has no room for the prompt and one branch",
    "error": "an error",
}
BUDGETS = {"seconds": "--max-seconds", "tokens": "--max-tokens"}
NO_THINKING = "--chat-template-kwargs '{\"enable_thinking\": false}'"
HOTTEST = 1.2  # a higher temperature makes nonsense of most models


class Room(NamedTuple):
    """What bounds a path of a model.

    Attributes:
        context: tokens of the longest path. longest: of the longest that the model takes.
        kv_tokens: what the cache holds. may_skip_thought: the chat template can switch it off.
    """

    context: int
    longest: int
    kv_tokens: int
    may_skip_thought: bool


def room_of(engine: "Engine") -> Room:
    """What bounds a path of this engine's model."""
    from marco_fast.engine.loading.context import limit_of

    template = str(engine.tokenizer.chat_template or "")
    return Room(
        engine.context,
        limit_of(engine.model.config).tokens,
        engine.cache.num_pages * engine.cache.page_size,
        "enable_thinking" in template,
    )


def why_unfinished(result: "SearchResult", room: Room) -> str:
    """The causes, the most frequent first, each with what to change."""
    ends = path_ends(result)
    if not ends:
        given = {"seconds": result.config.max_seconds, "tokens": result.config.max_tokens}
        if (option := BUDGETS.get(result.stop_reason)) is not None:
            return f"nothing was decoded within {option} {given[result.stop_reason]:g}; give more"
        return f"nothing was decoded; stopped by: {result.stop_reason}"
    counts = Counter(ends)
    several = len(counts) > 1
    return "; ".join(
        f"{_paths(count, len(ends), several)} {CAUSES[end](result, room)}"
        for end, count in counts.most_common()
    )


def path_ends(result: "SearchResult") -> list[str]:
    """How each path ended that nothing follows, once per branch that wrote it: a key of CAUSES."""
    tree, config = result.tree, result.config
    ends: list[str] = []
    for node, below in enumerate(tree.children):
        if below or not tree.token_ids[node] or tree.finished[node]:
            continue
        end: str | None = tree.end[node]
        if end in ("eos", "reply"):
            end = _of_its_own(result, node)
        elif end is None and _rollout(result, node) >= config.rollout_tokens:
            end = "rollout"
        elif end is None:
            end = result.stop_reason if result.stop_reason in BUDGETS else "broken off"
        ends += [str(end)] * max(1, tree.ended[node])
    return ends


def no_effect(result: "SearchResult") -> str | None:
    """What of the options did nothing in a search; None where all did something."""
    forced = any(None in row for row in result.tree.logprobs)
    if not result.config.reflect or forced:
        return None
    if not result.stats.expansions:
        return None
    return (
        "--reflect had no effect: no path ended its thought with as much room left in the context "
        "and the budget as it had used"
    )


def _of_its_own(result: "SearchResult", node: int) -> str:
    """How a path without an answer ended that the model itself ended."""
    ids = result.tree.path_token_ids(node)
    text = b"".join(result.token_bytes[each] for each in ids).decode(errors="replace")
    if not text.strip():
        return "empty"
    if result.config.reply == "think" and "think>" not in text and not _asks_for_thought(result):
        return "no <think>"
    marco = "<Thought>" in text or "<Output>" in text
    if "</think>" not in text and ("<think>" in text or not marco):
        return "<think>"
    if "<Thought>" in text and "</Thought>" not in text and "<Output>" not in text:
        return "<Thought>"
    return "no answer"


def _asks_for_thought(result: "SearchResult") -> bool:
    """Whether the prompt ends by opening a thought."""
    ending = (result.token_bytes[each] for each in result.prompt_token_ids[-16:])
    return b"".join(ending).rstrip().endswith(b"<think>")


def _rollout(result: "SearchResult", node: int) -> int:
    """The tokens of the rollout that ended at the node."""
    tree, count = result.tree, 0
    while tree.rollout[node]:
        count += len(tree.token_ids[node])
        node = tree.parent[node]
    return count


def _paths(count: int, all_paths: int, several: bool) -> str:
    if several:
        return f"{count} of {all_paths} paths"
    return "the only path" if count == 1 else f"all {count} paths"


def _loop(result: "SearchResult", room: Room) -> str:
    temperature = result.config.temperature
    if temperature < HOTTEST:
        more = f"--temperature (now {temperature:g}), with --min-p 0.1 against rare tokens"
        return f"went in circles: raise {more}"
    return f"went in circles, at --temperature {temperature:g}: try another --seed or question"


def _context(result: "SearchResult", room: Room) -> str:
    told = f"filled the context of {room.context} tokens, {len(result.prompt_token_ids)} of them "
    told += "the prompt's"
    if room.context < room.longest:
        option = "--kv-tokens or --context" if room.kv_tokens <= room.context else "--context"
        return f"{told}: give more {option}, up to {room.longest}"
    skip = f", or go without a thought: {NO_THINKING}" if room.may_skip_thought else ""
    return f"{told}, which is all that the model takes: ask for less{skip}"


def _kv_full(result: "SearchResult", room: Room) -> str:
    return f"filled the KV cache of {room.kv_tokens} tokens: give more --kv-tokens"


def _cut_off(result: "SearchResult", room: Room) -> str:
    limit, default = result.config.rollout_tokens, SearchConfig.rollout_tokens
    more = "give more" if limit >= default else "give more, or leave it out"
    if limit == 0:
        return f"ended behind an action, with --rollout-tokens 0: {more}"
    return f"reached --rollout-tokens {limit}: {more}"


def _seconds(result: "SearchResult", room: Room) -> str:
    pace = f"{result.stats.tokens_per_second:.0f} tokens/s"
    return f"still ran after --max-seconds {result.config.max_seconds:g}, at {pace}: give more"


def _tokens(result: "SearchResult", room: Room) -> str:
    more = (
        "give more" if result.config.parallel == 1 else "give more, or fewer branches: --parallel"
    )
    return f"still ran when --max-tokens {result.config.max_tokens} were used up: {more}"


def _broken_off(result: "SearchResult", room: Room) -> str:
    return f"still ran when the search ended ({result.stop_reason})"


def _in_thought(tag: str) -> Callable[["SearchResult", Room], str]:
    def cause(result: "SearchResult", room: Room) -> str:
        skip = f", or go without a thought: {NO_THINKING}" if room.may_skip_thought else ""
        return f"ended inside {tag}, before an answer: try another --seed or --temperature{skip}"

    return cause


def _no_think(result: "SearchResult", room: Room) -> str:
    return "wrote no </think>, behind which --reply think looks for the answer: leave it out"


def _empty(result: "SearchResult", room: Room) -> str:
    return "ended at once, without a word: ask in another way, or give a --system prompt"


def _no_answer(result: "SearchResult", room: Room) -> str:
    return "ended with nothing where the answer stands: try another --seed or --temperature"


CAUSES: dict[str, Callable[["SearchResult", Room], str]] = {
    "loop": _loop,
    "context": _context,
    "kv_full": _kv_full,
    "rollout": _cut_off,
    "seconds": _seconds,
    "tokens": _tokens,
    "broken off": _broken_off,
    "<think>": _in_thought("<think>"),
    "<Thought>": _in_thought("<Thought>"),
    "no <think>": _no_think,
    "empty": _empty,
    "no answer": _no_answer,
}
