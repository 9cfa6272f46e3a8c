"""A true tree in one KV cache of llama.cpp or of a fork of it, all branches in one decode.

A sequence of the cache is one root-to-leaf path; paths share the cells of their common tokens. The
first child of a node goes on in the node's own sequence and each further one in a copy of it, so a
node's cells can always be found in the sequence that it was decoded in, up to its own length.
"""

import time
from typing import Protocol

import numpy as np
from protocol import Expansion, Replay, Schedule

__all__ = ["NOTE", "Library", "Tree", "sequences_of"]

BLOCK = 64  # logits summed together before sampling looks at single ones
NOTE = "one sequence a path, forked by seq_cp in a unified KV cache; sampling and top k in NumPy"


class Library(Protocol):
    """What a tree needs of an engine: one model and one context with a unified KV cache."""

    vocab_size: int
    flash: bool  # whether the context uses flash attention

    def make_context(self, *, flash: bool) -> None:
        """An empty KV cache in the place of the one before, with or without flash attention."""

    def clear(self) -> None:
        """Empty the KV cache."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Let a sequence begin with the cells of another one's first positions."""

    def decode(
        self, ids: np.ndarray, positions: np.ndarray, sequences: np.ndarray, wanted: np.ndarray
    ) -> np.ndarray:
        """Compute int32 [n] tokens, each of one sequence.

        Args:
            wanted: int8 [n], whose logits are returned.

        Returns:
            Logits [wanted.sum(), vocab_size], valid until the next decode.
        """


class Sampler:
    """Samples a batch of rows of logits and scores them, reusing one buffer."""

    def __init__(self, rows: int, vocab_size: int, schedule: Schedule) -> None:
        self.vocab_size = vocab_size
        self.blocks = -(-vocab_size // BLOCK)
        self.top_k, self.top_p = schedule.top_k, schedule.top_p
        self.temperature = schedule.temperature
        self.random = np.random.default_rng(0)
        # The padding of the last block changes no maximum and no sum.
        self.logits = np.full((rows, self.blocks * BLOCK), -np.inf, np.float32)
        self.weights = np.zeros_like(self.logits)

    def __call__(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids [rows], their logprobs [rows] and the best logprobs [rows, k], before temperature."""
        rows = np.arange(len(logits))[:, None]
        own, weights = self.logits[: len(logits)], self.weights[: len(logits)]
        own[:, : self.vocab_size] = logits
        best = self._best(own, rows)
        np.subtract(own, best[:, :1], out=own)
        lse = np.exp(own, out=weights).sum(1, keepdims=True)
        np.log(lse, out=lse)
        np.exp(np.divide(own, self.temperature, out=weights), out=weights)
        if self.top_p < 1:
            self._cut(weights, rows)
        ids = self._draw(weights, rows)
        return ids, own[rows[:, 0], ids] - lse[:, 0], best - best[:, :1] - lse

    def _best(self, logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The k largest logits, descending: they are in the k blocks of the largest maxima."""
        blocks = logits.reshape(len(logits), self.blocks, BLOCK)
        k = min(self.top_k, self.blocks)
        where = np.argpartition(blocks.max(2), self.blocks - k, axis=1)[:, -k:]
        return np.sort(blocks[rows, where].reshape(len(logits), -1), axis=1)[
            :, : -self.top_k - 1 : -1
        ]

    def _cut(self, weights: np.ndarray, rows: np.ndarray) -> None:
        """Zero the weights outside the smallest set of tokens that holds top_p of all weight."""
        order = np.argsort(-weights, axis=1)
        ordered = weights[rows, order]
        before = ordered.cumsum(1, dtype=np.float64) - ordered
        ordered[before >= self.top_p * before[:, -1:]] = 0
        weights[rows, order] = ordered

    def _draw(self, weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """One index per row, drawn in proportion to the weights: a block, then an entry of it."""
        blocks = weights.reshape(len(weights), self.blocks, BLOCK)
        ends = blocks.sum(2).cumsum(1, dtype=np.float64)
        target = self.random.random((len(weights), 1)) * ends[:, -1:]
        block = (ends > target).argmax(1)[:, None]
        begin = np.where(block > 0, ends[rows, block - 1], 0)
        inside = begin + blocks[rows[:, 0], block[:, 0]].cumsum(1, dtype=np.float64)
        # Rounding may leave the target past the last sum: then the heaviest token is taken.
        passed = inside > target
        chosen = np.where(
            passed.any(1), passed.argmax(1), blocks[rows[:, 0], block[:, 0]].argmax(1)
        )
        return block[:, 0] * BLOCK + chosen


class Tree:
    """A schedule, and during a replay the sequence and the logits of each node."""

    def __init__(self, library: Library, schedule: Schedule) -> None:
        self.library, self.schedule = library, schedule
        self.lengths = schedule.lengths
        self.sample = Sampler(schedule.branches, library.vocab_size, schedule)
        tokens = max(schedule.branches, len(schedule.prompt))
        self.ids, self.positions, self.sequence_of = np.zeros((3, tokens), np.int32)
        self.wanted = np.zeros(tokens, np.int8)

    def choose_attention(self) -> None:
        """Keep flash attention or do without it, whichever replays faster."""
        seconds = {}
        for flash in (False, True):
            self.library.make_context(flash=flash)
            self.argmax()
            start = time.perf_counter()
            self.replay()
            seconds[flash] = time.perf_counter() - start
        if seconds[False] < seconds[True]:
            self.library.make_context(flash=False)

    def argmax(self) -> int:
        self._forget()
        self._complete([0])
        return int(self.logits[0].argmax())

    def replay(self) -> Replay:
        self._forget()
        for expansions in self.schedule.rounds:
            parents = {each.parent for each in expansions}
            self._complete([node for node in sorted(parents) if node not in self.logits])
            self._expand(self._fork(expansions))
        logprobs = np.concatenate([each[1] for each in self.records.values()])
        best = np.concatenate([each[2] for each in self.records.values()])
        confidence = np.exp(logprobs) / np.exp(best).sum(1)
        mean = float(confidence.mean())
        return Replay(len(self.records), len(logprobs), mean, round(self.sampling, 4))

    def _forget(self) -> None:
        self.library.clear()
        self.sequence = {0: 0}
        self.sequences, self.sampling = 1, 0.0
        self.taken: set[int] = set()  # nodes whose own sequence a child continues
        self.unread = {0: np.array(self.schedule.prompt)}
        self.logits: dict[int, np.ndarray] = {}  # [vocab_size] after a node's last token
        self.records: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def _complete(self, nodes: list[int]) -> None:
        """Decode what these nodes still lack: the whole prompt, or the newest token."""
        if not nodes:
            return
        counts = [len(self.unread[node]) for node in nodes]
        ends = np.cumsum(counts)
        self.ids[: ends[-1]] = np.concatenate([self.unread[node] for node in nodes])
        self.wanted[: ends[-1]] = 0
        self.wanted[ends - 1] = 1
        for node, end, count in zip(nodes, ends, counts, strict=True):
            length = self.lengths[node]
            self.positions[end - count : end] = np.arange(length - count, length)
            self.sequence_of[end - count : end] = self.sequence[node]
        rows = self._decode(int(ends[-1]))
        self.logits |= {node: row.copy() for node, row in zip(nodes, rows, strict=True)}

    def _fork(self, expansions: list[Expansion]) -> list[Expansion]:
        """Give each child a sequence with its parent's path; returns the longest children first."""
        for node, parent, _ in expansions:
            self.sequence[node] = self.sequence[parent]
            if parent in self.taken:
                self.sequence[node] = self.sequences
                self.sequences += 1
                source, length = self.sequence[parent], self.lengths[parent]
                self.library.copy(source, self.sequence[node], length)
            self.taken.add(parent)
        return sorted(expansions, key=lambda each: -each.tokens)

    def _expand(self, expansions: list[Expansion]) -> None:
        """Sample below each parent; a child that has its tokens leaves the end of the batch."""
        tokens = np.array([each.tokens for each in expansions])
        active = len(expansions)
        self.sequence_of[:active] = [self.sequence[each.node] for each in expansions]
        self.positions[:active] = [self.lengths[each.parent] for each in expansions]
        self.wanted[:active] = 1
        logits = np.stack([self.logits[each.parent] for each in expansions])
        ids = np.zeros((active, tokens[0]), np.int32)
        logprobs = np.zeros((active, tokens[0]), np.float32)
        best = np.zeros((active, tokens[0], self.schedule.top_k), np.float32)
        for step in range(tokens[0]):
            if step:
                active = int((tokens > step).sum())
                self.ids[:active] = ids[:active, step - 1]
                logits = self._decode(active)
                self.positions[:active] += 1
            start = time.perf_counter()
            sampled = self.sample(logits)
            self.sampling += time.perf_counter() - start
            ids[:active, step], logprobs[:active, step], best[:active, step] = sampled
        for row, (node, _, count) in enumerate(expansions):
            self.unread[node] = ids[row, count - 1 : count]
            self.records[node] = (ids[row, :count], logprobs[row, :count], best[row, :count])

    def _decode(self, tokens: int) -> np.ndarray:
        """Logits of the batch's first tokens, as Library.decode."""
        return self.library.decode(
            self.ids[:tokens],
            self.positions[:tokens],
            self.sequence_of[:tokens],
            self.wanted[:tokens],
        )


def sequences_of(schedule: Schedule) -> int:
    """How many sequences a replay uses: one per leaf, or one where nothing is expanded."""
    parents = {each.parent for one in schedule.rounds for each in one}
    nodes = {each.node for one in schedule.rounds for each in one}
    return max(1, len(nodes - parents))
