"""Which replies are worth training on: the figures of a reply, and the limits on them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from marco_fast.data.questions_file import Asked
from marco_fast.forest.result import SearchResult
from marco_fast.search.answer import canonical
from marco_fast.search.marco import REFLECTION

__all__ = ["FILTERS", "Limits", "entry_of", "refused_by", "repetition"]

WINDOW = 8  # words per window: prose hardly ever repeats so many by chance
REPLY = re.compile(r"\s*<Thought>(.*)</Thought>\s*<Output>(.*)</Output>\s*", re.DOTALL)
TAGS = ("<Thought>", "</Thought>", "<Output>", "</Output>")


@dataclass(frozen=True)
class Limits:
    """Limits on the replies that are kept; the defaults suit a model of about 7 B parameters.

    Attributes:
        min_tokens, max_tokens: tokens of the whole reply, tags included.
        max_repetition: the largest share of repeated windows (see repetition), in [0, 1].
        min_agreement: the smallest share of the votes for the answer, in [0, 1]. Each finished path
            votes for its own answer, weighted by its value.
        min_confidence: the smallest value of the chosen path, in [0, 1].

    Raises:
        ValueError: a limit is not a number in its range, or max_tokens is below min_tokens.
    """

    min_tokens: int = 32
    max_tokens: int = 2048
    max_repetition: float = 0.3
    min_agreement: float = 0.5
    min_confidence: float = 0.6

    def __post_init__(self) -> None:
        for each in fields(self):
            value, top = getattr(self, each.name), 1 if "tokens" not in each.name else 10**9
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 <= value <= top
            ):
                raise ValueError(f"expected {each.name} to be from 0 to {top}, got {value!r}")
        if self.max_tokens < self.min_tokens:
            raise ValueError(
                f"expected max_tokens of at least min_tokens {self.min_tokens}, "
                f"got {self.max_tokens}"
            )


# Each check says whether a reply passes; they are asked in this order. The filter "answer" has no
# check: it refuses a question without a finished path, which has no reply to look at.
CHECKS: dict[str, Callable[[Mapping[str, Any], Limits], bool]] = {
    "tags": lambda seen, limits: seen["tags"],
    "length": lambda seen, limits: limits.min_tokens <= seen["tokens"] <= limits.max_tokens,
    "repetition": lambda seen, limits: seen["repetition"] <= limits.max_repetition,
    "agreement": lambda seen, limits: seen["agreement"] >= limits.min_agreement,
    "confidence": lambda seen, limits: seen["confidence"] >= limits.min_confidence,
    "correct": lambda seen, limits: seen["correct"] is not False,
}
FILTERS = ("answer", *CHECKS)


def refused_by(seen: Mapping[str, Any] | None, limits: Limits) -> str | None:
    """The name of the first filter that refuses a reply; None if the reply is kept.

    Args:
        seen: the figures of the reply, from its entry of the journal; None if no path is finished.
        limits: on those figures.
    """
    if seen is None:
        return "answer"
    return next((name for name, passes in CHECKS.items() if not passes(seen, limits)), None)


def repetition(thought: str) -> float:
    """The share of a thought's windows of 8 words that repeat an earlier window, in [0, 1].

    A word is a sequence of letters, digits and underscores; each Chinese or Japanese character and
    each other sign is a word of its own. The parts before and after the reflection phrase are
    looked at separately, since second thoughts may repeat the first ones, and the larger share
    counts. A part of fewer than 9 words has the share 0.0.
    """
    shares = [0.0]
    for part in thought.split(REFLECTION.strip()):
        words = re.findall(
            r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]", part.lower()
        )
        windows = [tuple(words[i : i + WINDOW]) for i in range(len(words) - WINDOW + 1)]
        if windows:
            shares.append((len(windows) - len(set(windows))) / len(windows))
    return max(shares)


def _agreement(result: SearchResult) -> float:
    """The chosen answer's share of the votes of all finished paths.

    Each path votes for its own answer, weighted by its value.
    """
    votes: dict[str, float] = {}
    for node, answer in result.answers.items():
        key, value = canonical(answer), result.tree.end_value[node]
        votes[key] = votes.get(key, 0.0) + (value if value > 0 else 0.0)
    total = sum(votes.values())
    return votes[canonical(result.answer)] / total if total > 0 else 0.0


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
    if result.answer_node not in result.answers:
        return {"id": asked.id, "seen": None, "record": None}
    text = result.text
    text = text[: text.index("</Output>") + len("</Output>")]
    parts = REPLY.fullmatch(text)
    # U+FFFD stands for bytes that are not UTF-8. The name of a special token in the text would be
    # encoded as that token in training.
    clean = not any(mark in text for mark in ("\ufffd", *special))
    once = all(text.count(tag) == 1 for tag in TAGS)
    whole = parts is not None and all(part.strip() for part in parts.groups())
    key = None if asked.answer is None else canonical(asked.answer)
    seen = {
        "tags": clean and once and whole,
        "tokens": len(result.tree.path_token_ids(result.answer_node)),
        "repetition": repetition(result.thought),
        "agreement": _agreement(result),
        "confidence": float(result.confidence),
        "correct": None if key is None else canonical(result.answer) == key,
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
        "confidence": seen["confidence"],
        "tree": figures,
        "model": result.model,
    }
    return {"id": asked.id, "seen": seen, "record": line}


def _tree_figures(result: SearchResult) -> dict[str, Any]:
    tree, depth = result.tree, [0]
    for parent in tree.parent[1:]:
        depth.append(depth[parent] + 1)
    return {
        "nodes": len(tree),
        "expansions": result.stats.expansions,
        "rollout_nodes": result.stats.rollout_nodes,
        "finished": len(result.answers),
        "answers": len({canonical(each) for each in result.answers.values()}),
        "depth": max(depth),
        "tokens": result.stats.tokens,
        "visits": tree.visits[result.answer_node],
        "stop_reason": result.stop_reason,
    }
