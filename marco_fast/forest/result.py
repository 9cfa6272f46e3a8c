"""What comes out of a search: the result, its figures, and snapshots on the way."""

import codecs
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from marco_fast.files import write_whole
from marco_fast.search.answer import AnswerGroup
from marco_fast.search.config import SearchConfig
from marco_fast.search.tree import SearchTree

__all__ = ["Progress", "SearchResult", "SearchStats"]


@dataclass(frozen=True)
class SearchStats:
    """What a search did.

    Attributes:
        expansions: children decoded, valued and backed up.
        rollout_nodes: nodes that their rollouts left behind.
        finished_paths: branches that ended by themselves with an answer.
        distinct_paths: the different paths at whose ends branches ended, finished or not.
        expansions_per_second, tokens_per_second: of this question, over `seconds`.
        tokens: decoded tokens, forced ones included. seconds: from the question's first branch.
        kv_tokens_unique: KV tokens that all decode steps of the call read, each segment once per
            step.
        kv_tokens_path: the same when every branch reads its whole path; the ratio is the sharing.
    """

    expansions: int
    rollout_nodes: int
    finished_paths: int
    distinct_paths: int
    expansions_per_second: float
    tokens: int
    tokens_per_second: float
    seconds: float
    kv_tokens_unique: int
    kv_tokens_path: int


@dataclass(frozen=True)
class SearchResult:
    """What came out of a search.

    Attributes:
        question: the text. messages: the whole chat that it ends.
        answer: what the reply's format calls the answer. Where no path finished, that of the best
            unfinished path as far as it goes, or all its text; "" only when nothing was written.
        thought: the reasoning before it; "" where the format has none.
        final: what of the answer was voted on and is compared, such as "18"; "" where no path
            finished.
        finished: whether the chosen path ended by itself, by EOS or the end of its format.
        confidence: the value of the chosen path, in [0, 1] unless a value function says otherwise.
        support: the share of the vote that `final` got, in [0, 1]; 0.0 where no path finished.
        answers: the finished paths in groups of one final, the chosen one first, then the best.
        tree: the SearchTree. path_answers: the answer of every finished path, by its last node.
        answer_node: the chosen path's last node.
        stats: SearchStats. stop_reason: "expansions", "tokens", "seconds", "exhausted",
            "interrupted", "kv_full" (the prompt left no page for one branch) or "error".
        error: the exception behind "error" and "kv_full", else None.
        model: the engine's name. prompt_token_ids: what the model was given. config: the options.
        token_bytes: the UTF-8 bytes of each token id of the model.
    """

    question: str
    messages: list[dict[str, str]]
    answer: str
    thought: str
    final: str
    finished: bool
    confidence: float
    support: float
    answers: list[AnswerGroup]
    tree: SearchTree
    path_answers: dict[int, str]
    answer_node: int
    stats: SearchStats
    stop_reason: str
    model: str
    prompt_token_ids: list[int]
    config: SearchConfig
    token_bytes: Sequence[bytes] = field(repr=False)
    error: BaseException | None = None

    @property
    def text(self) -> str:
        """The whole reply of the chosen path, tags included."""
        ids = self.tree.path_token_ids(self.answer_node)
        return b"".join(self.token_bytes[each] for each in ids).decode(errors="replace")

    def to_dict(self) -> dict[str, Any]:
        """The search as tree.json holds it; a node that ends a finished path has its answer."""
        texts = _token_texts(self.tree, self.token_bytes)
        rows = [
            row | {"texts": each, "answer": self.path_answers.get(row["id"])}
            for row, each in zip(self.tree.rows(), texts, strict=True)
        ]
        return {
            "format": "marco-fast-tree",
            "version": 2,
            "model": self.model,
            "question": self.question,
            "messages": self.messages,
            "prompt_token_ids": self.prompt_token_ids,
            "config": self.config.to_dict(),
            "seed": self.config.seed,
            "nodes": rows,
            "answer_node": self.answer_node,
            "answer": self.answer,
            "final": self.final,
            "finished": self.finished,
            "thought": self.thought,
            "confidence": self.confidence,
            "support": self.support,
            "stop_reason": self.stop_reason,
            "stats": vars(self.stats),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tree.json: whole or not at all.

        Raises:
            OSError: the file cannot be written; an older one is then as it was.
        """
        write_whole(path, json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False))


def _token_texts(tree: SearchTree, token_bytes: Sequence[bytes]) -> list[list[str]]:
    """The text of every node's tokens; a character belongs to the token that completes it."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    texts: list[list[str]] = []
    pending: list[bytes] = []  # of each node, the bytes of a character that it leaves incomplete
    for node, token_ids in enumerate(tree.token_ids):
        decoder.setstate((pending[tree.parent[node]] if node else b"", 0))
        texts.append([decoder.decode(token_bytes[each]) for each in token_ids])
        pending.append(decoder.getstate()[0])
    return texts


@dataclass(frozen=True)
class Progress:
    """A running search, as a progress function is told.

    Attributes:
        question: index of the question in the list. questions: how many there are.
        done: questions that are finished.
        answer, thought, value: of the path that would be chosen now; answer is None, value 0.0 as
            long as no path has ended. final: what of that answer is compared.
        finished: whether that path ended by itself. support: its final's share of the vote.
        finished_paths: paths that ended by themselves with an answer, over all questions.
        remaining: seconds that the search still takes at its present pace, as far as the lengths
            of its branches so far tell (or its budgets end it); None until a branch has ended.
        live: the text, as far as it goes, of the path that is decoding with the highest mean
            confidence; "" when none is.
        expansions, tokens, seconds: so far, over all questions. target: expansions to do in all.
        branches: paths decoding now. sharing: kv_tokens_path / kv_tokens_unique so far.
    """

    question: int
    questions: int
    done: int
    answer: str | None
    thought: str
    live: str
    value: float
    final: str
    finished: bool
    support: float
    finished_paths: int
    remaining: float | None
    expansions: int
    target: int
    tokens: int
    seconds: float
    branches: int
    sharing: float
