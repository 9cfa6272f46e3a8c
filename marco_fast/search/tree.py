"""The search tree as flat columns: every list has one entry per node, the root is node 0.

A node owns the tokens of one action (a step or a mini-step). The columns are Python lists:
selection reads a handful of scalars per level, and a list hands them out faster than an array.
"""

import hashlib
import math
from typing import Any, Literal

__all__ = ["ENDS", "End", "SearchTree", "child_seed", "root_seed"]

End = Literal["eos", "reply", "loop", "context", "kv_full"]
"""Why nothing follows a node: the model ended there, its reply's format, or it went in circles; the
context or the KV cache is full."""
ENDS: tuple[End, ...] = ("eos", "reply", "loop", "context", "kv_full")

FIXED_POINT = 2.0**40  # confidences are summed as integers of 2^-40: exact in any order
HUGE = 2.0**990  # sums of 10^7 values up to this are finite


def root_seed(seed: int, question: str) -> int:
    """The root's seed: a hash of the search's seed and the question's text, int64."""
    return _hash(f"{seed}\n{question}".encode())


def child_seed(parent_seed: int, ordinal: int) -> int:
    """The seed of the `ordinal`-th child of a node: the same in any order of decoding, int64."""
    return _hash(b"%d/%d" % (parent_seed, ordinal))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


class SearchTree:
    """Nodes, their tokens and statistics, with backup.

    Attributes, with one entry per node:
        parent: parent node, -1 for the root; parents come before children.
        ordinal: which child of its parent (the order in which slots were handed out).
        seed: key of the node's draws, int64.
        children: nodes below, in the order they were added.
        token_ids, logprobs, confidences: of the node's tokens; the scores are None where forced.
        visits, value_sum: completed visits and the sum of their values, in units of `value_unit`.
        virtual_visits: visits in flight, of branches that still decode below the node.
        started: child slots handed out. open_slots: slots not handed out, in the whole subtree.
        end: why nothing can follow: "eos", "reply" (the reply's format ended), "loop", "context",
            "kv_full"; None where something can. terminal: whether nothing can.
        finished: the path ended by itself ("eos" or "reply") with an answer.
        rollout: the node was left behind by a rollout.
        ended: how many branches ended at this node, their value backed up. end_value: the mean of
            their values (that of the path, where all gave it the same); NaN where none did.
        path_sum, path_count: sum (units of 2^-40) and number of scored tokens from the root.

    Attributes of the whole tree:
        slots: children a node may have.
        value_unit: 1.0, until a value comes whose sums may overflow.
        value_min, value_max: the smallest and the largest value so far, in units of `value_unit`.
    """

    def __init__(self, seed: int, slots: int) -> None:
        self.slots = slots
        self.parent = [-1]
        self.ordinal = [0]
        self.seed = [seed]
        self.children: list[list[int]] = [[]]
        self.token_ids: list[list[int]] = [[]]
        self.logprobs: list[list[float | None]] = [[]]
        self.confidences: list[list[float | None]] = [[]]
        self.visits = [0]
        self.value_sum = [0.0]
        self.virtual_visits = [0]
        self.started = [0]
        self.open_slots = [slots]
        self.end: list[End | None] = [None]
        self.terminal = [False]
        self.finished = [False]
        self.rollout = [False]
        self.ended = [0]
        self.end_value = [math.nan]
        self.path_sum = [0]
        self.path_count = [0]
        self.value_min, self.value_max = math.inf, -math.inf
        self.value_unit = 1.0
        self._returned: dict[int, list[int]] = {}  # ordinals of slots that were given back

    def __len__(self) -> int:
        return len(self.parent)

    def start_child(self, node: int) -> int:
        """Hand out the node's next child slot; returns its ordinal."""
        ordinal = self.started[node]
        if node in self._returned:
            returned = self._returned[node]
            ordinal = min(returned)
            returned.remove(ordinal)
            if not returned:
                del self._returned[node]
        self.started[node] += 1
        self._add_open(node, -1)
        return ordinal

    def return_child(self, node: int, ordinal: int) -> None:
        """Take a slot back whose child was never added; it is the next that is handed out."""
        self._returned.setdefault(node, []).append(ordinal)
        self.started[node] -= 1
        if not self.terminal[node]:
            self._add_open(node, 1)

    def close(self, node: int, end: End) -> None:
        """Nothing can follow the node from now on, and why: its free slots are gone."""
        if not self.terminal[node]:
            self.end[node], self.terminal[node] = end, True
            self._add_open(node, self.started[node] - self.slots)

    def _add_open(self, node: int, count: int) -> None:
        """Add free slots to a node and everything above it."""
        while node >= 0:
            self.open_slots[node] += count
            node = self.parent[node]

    def add(
        self,
        parent: int,
        ordinal: int,
        token_ids: list[int],
        logprobs: list[float | None],
        confidences: list[float | None],
        *,
        end: End | None = None,
        finished: bool = False,
        rollout: bool = False,
        seed: int | None = None,
    ) -> int:
        """Add a node whose slot was handed out; it has no visit yet. Returns its id.

        `seed` is child_seed of the parent's seed and the ordinal, for a caller that has it already.
        """
        node = len(self.parent)
        scored = [round(c * FIXED_POINT) for c in confidences if c is not None]
        self.ordinal.append(ordinal)
        self.seed.append(child_seed(self.seed[parent], ordinal) if seed is None else seed)
        self.children.append([])
        self.token_ids.append(token_ids)
        self.logprobs.append(logprobs)
        self.confidences.append(confidences)
        self.visits.append(0)
        self.value_sum.append(0.0)
        self.virtual_visits.append(0)
        self.started.append(0)
        self.open_slots.append(0)
        self.end.append(end)
        self.terminal.append(end is not None)
        self.finished.append(finished)
        self.rollout.append(rollout)
        self.ended.append(0)
        self.end_value.append(math.nan)
        self.path_sum.append(self.path_sum[parent] + sum(scored))
        self.path_count.append(self.path_count[parent] + len(scored))
        self.parent.append(parent)  # last: an interrupt in front of it leaves a whole tree
        self.children[parent].append(node)
        if end is None:
            self._add_open(node, self.slots)
        return node

    def add_virtual(self, node: int, count: int) -> None:
        """Add `count` visits in flight to the node and everything above it."""
        while node >= 0:
            self.virtual_visits[node] += count
            node = self.parent[node]

    def backup(self, node: int, value: float) -> None:
        """Turn one visit in flight of the node's path into a completed visit of this value."""
        self.ended[node] += 1
        count, before = self.ended[node], self.end_value[node]
        # Halves of the largest floats have a difference, and equal values an exact mean.
        self.end_value[node] = value if count == 1 else before + (value / count - before / count)
        if not -HUGE <= value <= HUGE and self.value_unit == 1.0:
            self._take_larger_unit()
        value /= self.value_unit
        self.value_min = min(self.value_min, value)
        self.value_max = max(self.value_max, value)
        while node >= 0:
            self.virtual_visits[node] -= 1
            self.visits[node] += 1
            self.value_sum[node] += value
            node = self.parent[node]

    def _take_larger_unit(self) -> None:
        """From now on sums are kept in units of 2^64, in which those of any floats are finite."""
        self.value_unit = 2.0**64
        self.value_sum = [each / self.value_unit for each in self.value_sum]
        self.value_min /= self.value_unit
        self.value_max /= self.value_unit

    def path(self, node: int) -> list[int]:
        """The nodes from the root to `node`, both included."""
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = self.parent[node]
        return nodes[::-1]

    def path_token_ids(self, node: int) -> list[int]:
        """All generated and forced tokens from the root to the end of `node`."""
        return [token for each in self.path(node) for token in self.token_ids[each]]

    def path_confidence(self, node: int) -> float:
        """Mean confidence over the scored tokens from the root; 0.0 when there is none."""
        return mean_confidence(self.path_sum[node], self.path_count[node])

    def value(self, node: int) -> float:
        """The mean value of the completed visits; 0.0 before the first."""
        if not self.visits[node]:
            return 0.0
        mean = self.value_sum[node] / self.visits[node]
        if self.value_unit == 1.0:
            return mean
        # Rounding must not carry a mean of the largest floats beyond them.
        return min(max(mean, self.value_min), self.value_max) * self.value_unit

    def path_probability(self, node: int) -> float:
        """The geometric mean of p(token) from the root to the node, forced tokens left out.

        0.0 where no token was drawn.
        """
        drawn = [p for each in self.path(node) for p in self.logprobs[each] if p is not None]
        return math.exp(math.fsum(drawn) / len(drawn)) if drawn else 0.0

    def rows(self) -> list[dict[str, Any]]:
        """The nodes as tree.json holds them."""
        return [
            {
                "id": node,
                "parent": self.parent[node],
                "token_ids": self.token_ids[node],
                "logprobs": self.logprobs[node],
                "confidences": self.confidences[node],
                "visits": self.visits[node],
                "value": self.value(node),
                "path_confidence": self.path_confidence(node),
                "terminal": self.terminal[node],
                "end": self.end[node],
            }
            for node in range(len(self))
        ]


def mean_confidence(path_sum: int, path_count: int) -> float:
    """The mean of `path_count` confidences whose fixed-point sum is `path_sum`; 0.0 for none."""
    return path_sum / path_count / FIXED_POINT if path_count else 0.0
