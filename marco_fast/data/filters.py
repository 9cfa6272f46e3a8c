"""Which replies are worth training on: the figures of a reply, and the limits on them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from marco_fast.data.questions_file import Asked
from marco_fast.forest.result import SearchResult
from marco_fast.search.final import agree
from marco_fast.search.marco import REFLECTION
from marco_fast.search.replies import MARCO

__all__ = ["ADVICE", "FILTERS", "Limits", "entry_of", "refused_by", "repetition"]

LEAST_TOKENS = {True: 32, False: 1}  # of a reply with a thought, and without
WINDOW = 8  # words per window: prose hardly ever repeats so many by chance
REPLY = re.compile(r"\s*<Thought>(.*)</Thought>\s*<Output>(.*)</Output>\s*", re.DOTALL)
TAGS = ("<Thought>", "</Thought>", "<Output>", "</Output>")


@dataclass(frozen=True)
class Limits:
    """Limits on the replies that are kept; the defaults suit a model of about 7 B parameters.

    Attributes:
        min_tokens, max_tokens: tokens of the whole reply, tags included. A min_tokens of None is 32
            for a reply with a thought, which fewer tokens do not explain, and 1 for one without.
        max_repetition: the largest share of repeated windows (see repetition), in [0, 1].
        min_agreement: the smallest support of the answer, in [0, 1]: the share of the vote of all
            finished paths that says the same.
        min_confidence: the smallest value of the chosen path, in [0, 1].

    Raises:
        ValueError: a limit is not a number in its range, or max_tokens is below min_tokens.
    """

    min_tokens: int | None = None
    max_tokens: int = 2048
    max_repetition: float = 0.3
    min_agreement: float = 0.5
    min_confidence: float = 0.6

    def __post_init__(self) -> None:
        for each in fields(self):
            value, top = getattr(self, each.name), 1 if "tokens" not in each.name else 10**9
            if value is None and each.default is None:
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 <= value <= top
            ):
                raise ValueError(f"expected {each.name} to be from 0 to {top}, got {value!r}")
        if self.min_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(
                f"expected max_tokens of at least min_tokens {self.min_tokens}, "
                f"got {self.max_tokens}"
            )


def _long_enough(seen: Mapping[str, Any], limits: Limits) -> bool:
    least = LEAST_TOKENS[seen["thinks"]] if limits.min_tokens is None else limits.min_tokens
    return bool(least <= seen["tokens"] <= limits.max_tokens)


# Each check says whether a reply passes; they are asked in this order. The filter "answer" has no
# check: it refuses a question without a finished path, which has no reply to look at.
CHECKS: dict[str, Callable[[Mapping[str, Any], Limits], bool]] = {
    "text": lambda seen, limits: seen["text"],
    "tags": lambda seen, limits: seen["tags"],
    "length": _long_enough,
    "repetition": lambda seen, limits: seen["repetition"] <= limits.max_repetition,
    "agreement": lambda seen, limits: seen["agreement"] >= limits.min_agreement,
    "confidence": lambda seen, limits: seen["confidence"] >= limits.min_confidence,
    "correct": lambda seen, limits: seen["correct"] is not False,
}
FILTERS = ("answer", *CHECKS)
# What a filter refuses, and what may be changed where it refuses too much.
ADVICE = {
    "answer": ("no path finished", "give more --rollout-tokens or --expansions"),
    "text": ("not Unicode, or names a special token", "another model or question may help"),
    "tags": (
        "not one <Thought> followed by one <Output>",
        "--reply plain keeps replies as they are, and --system marco-o1 asks for the tags",
    ),
    "length": ("too short or too long", "see --min-tokens and --max-tokens-kept"),
    "repetition": ("repeats itself", "see --max-repetition; --temperature and --min-p help"),
    "agreement": ("too few paths agree", "see --min-agreement; 0 suits answers of prose"),
    "confidence": ("confidence too low", "see --min-confidence"),
    "correct": ("not the reference answer", "give more --expansions, or a stronger --model"),
}


def refused_by(seen: Mapping[str, Any] | None, limits: Limits) -> str | None:
    """The name of the first filter that refuses a reply; None if the reply is kept.

    Args:
        seen: the figures of the reply, from its entry of the journal; None if no path is finished.
        limits: on those figures.
    """
    if seen is None:
        return "answer"
    return next((name for name, passes in CHECKS.items() if not passes(seen, limits)), None)


def repetition(text: str) -> float:
    """The share of a text's windows of 8 words that repeat an earlier window, in [0, 1].

    A word is a sequence of letters, digits and underscores; each Chinese or Japanese character and
    each other sign is a word of its own. The parts before and after the reflection phrase are
    looked at separately, since second thoughts may repeat the first ones, and the larger share
    counts. A part of fewer than 9 words has the share 0.0.
    """
    shares = [0.0]
    for part in text.split(REFLECTION.strip()):
        words = re.findall(
            r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]", part.lower()
        )
        windows = [tuple(words[i : i + WINDOW]) for i in range(len(words) - WINDOW + 1)]
        if windows:
            shares.append((len(windows) - len(set(windows))) / len(windows))
    return max(shares)


def entry_of(asked: Asked, result: SearchResult, special: Sequence[str]) -> dict[str, Any]:
    """The entry of the journal for one searched question.

    Args:
        asked: the question.
        result: of its search.
        special: the special tokens of the model, by name.

    Returns:
        {"id", "seen", "record"}: the figures that the filters look at, and the line for the
        output. Both are None without a finished path.
    """
    if not result.finished:
        return {"id": asked.id, "seen": None, "record": None}
    text = result.text
    if result.reply == MARCO.name:
        body, end, _ = text.partition("</Output>")
        text = body + end
    seen = {
        # U+FFFD stands for bytes that are not UTF-8. The name of a special token in the text would
        # be encoded as that token in training.
        "text": not any(mark in text for mark in ("\ufffd", *special)),
        "tags": result.reply != MARCO.name or _is_tagged(text),
        "thinks": bool(result.thought),
        "tokens": len(result.tree.path_token_ids(result.answer_node)),
        "repetition": repetition(result.thought or result.answer),
        "agreement": result.support,
        "confidence": float(result.confidence),
        "correct": None if asked.answer is None else agree(result.final, asked.answer),
    }
    figures = _tree_figures(result) | {
        "reply_tokens": seen["tokens"],
        "agreement": seen["agreement"],
        "repetition": seen["repetition"],
    }
    line = {
        "id": asked.id,
        "messages": [*asked.messages, {"role": "assistant", "content": text}],
        "thought": result.thought,
        "output": result.answer,
        "final": result.final,
        "format": result.reply,
        "confidence": seen["confidence"],
        "tree": figures,
        "model": result.model,
    }
    return {"id": asked.id, "seen": seen, "record": line}


def _is_tagged(text: str) -> bool:
    """Whether a reply is one thought and one output, both with some text, and nothing else."""
    parts = REPLY.fullmatch(text)
    once = all(text.count(tag) == 1 for tag in TAGS)
    return once and parts is not None and all(part.strip() for part in parts.groups())


def _tree_figures(result: SearchResult) -> dict[str, Any]:
    tree, depth = result.tree, [0]
    for parent in tree.parent[1:]:
        depth.append(depth[parent] + 1)
    return {
        "nodes": len(tree),
        "expansions": result.stats.expansions,
        "rollout_nodes": result.stats.rollout_nodes,
        "finished": len(result.path_answers),
        "answers": len(result.answers),
        "depth": max(depth),
        "tokens": result.stats.tokens,
        "visits": tree.visits[result.answer_node],
        "stop_reason": result.stop_reason,
    }
