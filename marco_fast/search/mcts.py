"""Marco-o1's Monte Carlo tree search as ask/tell: who decodes the tokens is not its concern.

ask() selects a node and hands out a ticket for one more child of it. The holder decodes the
child's action and, with rollouts, goes on to the end of the answer; it calls grow() at each end of
an action and tell() at the end. Any number of tickets can be out at once, and told in any order.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from marco_fast.search.tree import SearchTree, child_seed, mean_confidence, root_seed

__all__ = ["Search", "SearchConfig", "Ticket", "ValueFunction", "canonical", "choose_answer"]

ValueFunction = Callable[[Sequence[int], Sequence[float | None], str], float]

CHOICES = {
    "action": ("step", "mini-step"),
    "value": ("path", "rollout", "logprob"),
    "answer": ("value", "visits", "vote"),
}
# name: (type, smallest, largest); None is allowed where the default is None
RANGES: dict[str, tuple[type, float, float]] = {
    "step_tokens": (int, 1, 4096),
    "max_step_tokens": (int, 1, 4096),
    "expansions": (int, 1, 10**7),
    "children": (int, 1, 256),
    "parallel": (int, 1, 4096),
    "rollout_tokens": (int, 0, 10**6),
    "c_uct": (float, 0.0, 1e6),
    "temperature": (float, 0.0, 100.0),
    "top_p": (float, 0.0, 1.0),
    "top_k": (int, 1, 32),
    "seed": (int, -(2**63), 2**63 - 1),
    "max_tokens": (int, 1, 10**12),
    "max_seconds": (float, 0.0, 1e9),
}


@dataclass(frozen=True)
class SearchConfig:
    """The options of a search; every field is checked when it is made.

    Attributes:
        action: "mini-step" (step_tokens tokens) or "step" (ends with a blank line).
        step_tokens: tokens of a mini-step, 1 to 4096; 64 or 32 in the paper.
        max_step_tokens: most tokens of a step, 1 to 4096.
        expansions: nodes to add, at least 1.
        children: actions sampled from a selected node, 1 to 256.
        parallel: branches of one tree decoded at once, at least 1.
        rollout_tokens: most tokens a branch decodes after its action; 0: no rollout.
        c_uct: weight of the exploration term, at least 0.
        normalize: scale values in UCT by the smallest and largest value seen in the tree.
        virtual_loss: count a visit in flight as one of value 0 (classic virtual loss), not in the
            exploration terms alone (WU-UCT).
        temperature: of the draws, 0 to 100; below 1e-5 the most likely token.
        top_p: nucleus of the draws, in (0, 1].
        top_k: candidates in the confidence's denominator, 1 to 32.
        reflect: put the reflection phrase where a path first ends its thought, if the context has
            room for it and as many tokens again.
        value: "path" (mean confidence of all generated tokens), "rollout" (of the last branch's
            tokens), "logprob" (the tokens' geometric mean probability: exp of the path's mean
            logprob), or a callable(token_ids, confidences, text) -> float over the whole path.
        answer: which finished path answers: the best "value", the most "visits", or a "vote" of
            the answers, each weighted by the values of its paths.
        seed: the same seed, question and engine give the same tree.
        max_tokens: budget of decoded tokens. max_seconds: budget of wall time.

    Raises:
        ValueError: a field is not of its type or out of its range.
    """

    action: str = "mini-step"
    step_tokens: int = 32
    max_step_tokens: int = 128
    expansions: int = 64
    children: int = 4
    parallel: int = 16
    rollout_tokens: int = 512
    c_uct: float = 1.414
    normalize: bool = False
    virtual_loss: bool = False
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 5
    reflect: bool = False
    value: str | ValueFunction = "path"
    answer: str = "value"
    seed: int = 0
    max_tokens: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name in CHOICES:
                if option.name == "value" and callable(value):
                    continue
                if value not in CHOICES[option.name]:
                    expected = " or ".join(repr(each) for each in CHOICES[option.name])
                    raise ValueError(f"expected {option.name} to be {expected}, got {value!r}")
            elif option.name in RANGES:
                if value is None and option.default is None:
                    continue
                self._check_range(option.name, value)
            elif not isinstance(value, bool):
                raise ValueError(f"expected {option.name} to be True or False, got {value!r}")
        if self.top_p == 0:
            raise ValueError("expected top_p to be above 0, got 0")

    @staticmethod
    def _check_range(name: str, value: Any) -> None:
        kind, low, high = RANGES[name]
        number = isinstance(value, (int, float) if kind is float else int)
        if not number or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"expected {name} to be a finite {kind.__name__}, got {value!r}")
        if not low <= value <= high:
            raise ValueError(f"expected {name} to be from {low} to {high}, got {value!r}")

    @property
    def action_tokens(self) -> int:
        """Most generated tokens of one action."""
        return self.step_tokens if self.action == "mini-step" else self.max_step_tokens

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them; a callable by its name."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        if callable(self.value):
            values["value"] = getattr(self.value, "__qualname__", repr(self.value))
        return values


@dataclass(eq=False)
class Ticket:
    """One child being decoded, and the rollout that follows it.

    Attributes:
        node: the node that the action now being decoded follows.
        ordinal: that action's place among the node's children. seed: the key of its draws.
        nodes: what grow() added so far; the first is the expansion, the rest its rollout.
        done: told or abandoned.
    """

    node: int
    ordinal: int
    seed: int
    nodes: list[int] = field(default_factory=list)
    done: bool = False


class Search:
    """One question's search: hands out tickets, takes results, keeps the tree.

    Args:
        question: the text, which with config.seed keys every draw.
        config: the options.
    """

    def __init__(self, question: str, config: SearchConfig) -> None:
        self.config = config
        self.tree = SearchTree(root_seed(config.seed, question), config.children)
        self.asked = self.expansions = self.rollout_nodes = 0
        self.in_flight: list[Ticket] = []

    @property
    def exhausted(self) -> bool:
        """Nothing is left to expand and nothing in flight could change that."""
        return not self.in_flight and self.tree.open_slots[0] == 0

    def ask(self, n: int = 1) -> list[Ticket]:
        """Up to `n` children to decode; fewer when parallel, expansions or the tree allow fewer."""
        tickets: list[Ticket] = []
        while (
            len(tickets) < n
            and self.asked < self.config.expansions
            and len(self.in_flight) < self.config.parallel
        ):
            options = (self.config.c_uct, self.config.normalize, self.config.virtual_loss)
            node = self.tree.select(*options)
            if node is None:
                break
            ordinal = self.tree.start_child(node)
            self.tree.add_virtual(node, 1)
            ticket = Ticket(node, ordinal, child_seed(self.tree.seed[node], ordinal))
            self.asked += 1
            self.in_flight.append(ticket)
            tickets.append(ticket)
        return tickets

    def grow(
        self,
        ticket: Ticket,
        token_ids: list[int],
        logprobs: list[float | None],
        confidences: list[float | None],
        *,
        terminal: bool = False,
        finished: bool = False,
        more: bool = False,
    ) -> int:
        """An action of the ticket is decoded: it becomes a node, which others may select.

        Args:
            ticket: from ask(), not told yet.
            token_ids, logprobs, confidences: of the action; scores None where forced.
            terminal: nothing can follow. finished: the path holds a complete answer.
            more: the rollout goes on: the ticket moves to the new node's first child.

        Returns:
            The new node.

        Raises:
            ValueError: the ticket is done, or the lists differ in length or are empty.
        """
        if ticket.done:
            raise ValueError("expected a ticket in flight, got one that was told or abandoned")
        if not token_ids or not len(token_ids) == len(logprobs) == len(confidences):
            raise ValueError(
                "expected token_ids, logprobs and confidences of one length above 0, got "
                f"{len(token_ids)}, {len(logprobs)} and {len(confidences)}"
            )
        node = self.tree.add(
            ticket.node,
            ticket.ordinal,
            token_ids,
            logprobs,
            confidences,
            terminal=terminal,
            finished=finished,
            rollout=bool(ticket.nodes),
        )
        self.tree.virtual_visits[node] += 1
        ticket.nodes.append(node)
        ticket.node = node
        if more:
            ticket.ordinal = self.tree.start_child(node)
            ticket.seed = child_seed(self.tree.seed[node], ticket.ordinal)
        return node

    def tell(self, ticket: Ticket, value: float | None = None) -> None:
        """The ticket's branch has ended: back its value up. Telling twice changes nothing.

        Args:
            ticket: from ask(), with at least one grow().
            value: of the path; by default as config.value says.

        Raises:
            ValueError: the ticket never grew, or the value is not finite.
        """
        if ticket.done:
            return
        if not ticket.nodes:
            raise ValueError("expected a ticket with at least one action, got none")
        if value is None:
            value = self._value(ticket)
        if not math.isfinite(value):
            raise ValueError(f"expected a finite value of a path, got {value!r}")
        self._close(ticket)
        self.tree.backup(ticket.node, float(value))
        self.expansions += 1
        self.rollout_nodes += len(ticket.nodes) - 1

    def abandon(self, ticket: Ticket) -> None:
        """The ticket's branch was given up: its nodes stay, without its visit."""
        if not ticket.done:
            self._close(ticket)
            self.tree.add_virtual(ticket.node, -1)

    def _close(self, ticket: Ticket) -> None:
        ticket.done = True
        self.in_flight.remove(ticket)

    def _value(self, ticket: Ticket) -> float:
        if self.config.value == "logprob":
            return self.tree.path_probability(ticket.node)
        if self.config.value != "rollout":
            return self.tree.path_confidence(ticket.node)
        before = self.tree.parent[ticket.nodes[0]]
        return mean_confidence(
            self.tree.path_sum[ticket.node] - self.tree.path_sum[before],
            self.tree.path_count[ticket.node] - self.tree.path_count[before],
        )


def choose_answer(tree: SearchTree, answers: dict[int, str], rule: str) -> int | None:
    """The finished node that answers, ties to the older node.

    Args:
        tree: of a search.
        answers: the answer's text of every finished node; only "vote" compares the texts.
        rule: as SearchConfig.answer.

    Returns:
        A node, or None when no path is finished.
    """
    finished = [node for node in answers if not math.isnan(tree.end_value[node])]
    if not finished:
        return None
    if rule == "vote":
        weights: dict[str, float] = {}
        for node in sorted(finished):
            key = canonical(answers[node])
            weights[key] = weights.get(key, 0.0) + tree.end_value[node]
        winner = max(weights, key=weights.__getitem__)
        finished = [node for node in finished if canonical(answers[node]) == winner]
    elif rule == "visits":
        return _most_visited(tree, finished)
    return max(finished, key=lambda node: (tree.end_value[node], -node))


def _most_visited(tree: SearchTree, finished: list[int]) -> int:
    """Down from the root by visits, then mean value, along nodes with an answer below them."""
    holds = {node for end in finished for node in tree.path(end)}
    ends = set(finished)
    node = 0
    while node not in ends:
        below = [child for child in tree.children[node] if child in holds]
        node = max(below, key=lambda each: (tree.visits[each], tree.value(each), -each))
    return node


def canonical(answer: str) -> str:
    """Answers that differ in case, white space or a final full stop vote together."""
    return " ".join(answer.lower().split()).rstrip(".").rstrip()
