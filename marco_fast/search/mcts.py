"""Marco-o1's Monte Carlo tree search as ask/tell: who decodes the tokens is not its concern.

ask() selects a node and hands out a ticket for one more child of it. The holder decodes the
child's action and, with rollouts, goes on to the end of the answer; it calls grow() at each end of
an action and tell() at the end. Any number of tickets can be out at once, and told in any order.
"""

import math
from dataclasses import dataclass, field
from numbers import Integral

from marco_fast.search.config import SearchConfig
from marco_fast.search.selection import RULES
from marco_fast.search.tree import SearchTree, child_seed, root_seed
from marco_fast.search.values import VALUES

__all__ = ["Search", "Ticket"]


@dataclass(eq=False)
class Ticket:
    """One child being decoded, and the rollout that follows it.

    Attributes:
        node: the node that the action now being decoded follows.
        ordinal: which child of the node that action becomes. seed: the key of its draws.
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
        rule = config.select
        self._select = RULES[rule] if isinstance(rule, str) else self._select_by_own_rule

    @property
    def exhausted(self) -> bool:
        """Nothing is left to expand and nothing in flight could change that."""
        return not self.in_flight and self.tree.open_slots[0] == 0

    def ask(self, n: int = 1) -> list[Ticket]:
        """Up to `n` children to decode; fewer when parallel, expansions or the tree allow fewer.

        Raises:
            ValueError: the caller's own selection rule returned a node that can have no child.
        """
        tickets: list[Ticket] = []
        while (
            len(tickets) < n
            and self.asked < self.config.expansions
            and len(self.in_flight) < self.config.parallel
        ):
            node = self._select(self.tree, self.config)
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
            seed=ticket.seed,
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

    def _select_by_own_rule(self, tree: SearchTree, config: SearchConfig) -> int | None:
        """What the caller's own selection rule says, checked."""
        assert callable(config.select)
        node = config.select(tree, config)
        if node is None:
            return None
        inside = isinstance(node, Integral) and 0 <= node < len(tree)
        if not inside or tree.terminal[node] or tree.started[node] >= tree.slots:
            raise ValueError(
                "expected a selection rule to return a node with a free child slot, or None, got "
                f"{node!r}"
            )
        return int(node)

    def _value(self, ticket: Ticket) -> float:
        rule = self.config.value
        named = VALUES[rule if isinstance(rule, str) else "path"]
        return named(self.tree, ticket.node, self.tree.parent[ticket.nodes[0]])
