"""Marco-o1's Monte Carlo tree search as ask/tell: who decodes the tokens is not its concern.

ask() selects a node and hands out a ticket for one more child of it. The holder decodes the
child's action and, with rollouts, goes on to the end of the answer; it calls grow() at each end of
an action and tell() at the end. Any number of tickets can be out at once, and told in any order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from marco_fast.search.config import SearchConfig
from marco_fast.search.numbers import action_columns, as_float, as_int, shown
from marco_fast.search.selection import RULES
from marco_fast.search.tree import ENDS, End, SearchTree, child_seed, root_seed
from marco_fast.search.values import VALUES

__all__ = ["Search", "Ticket"]


@dataclass(eq=False)
class Ticket:
    """One child being decoded, and the rollout that follows it.

    Attributes:
        node: the node that the action now being decoded follows.
        ordinal: which child of the node that action becomes. seed: the key of its draws.
        nodes: what grow() added so far; the first is the expansion, the rest its rollout.
        growing: whether grow() may add one more. done: told or abandoned.
    """

    node: int
    ordinal: int
    seed: int
    nodes: list[int] = field(default_factory=list)
    growing: bool = True
    done: bool = False


class Search:
    """One question's search: hands out tickets, takes results, keeps the tree.

    A call that raises leaves everything as it was.

    Args:
        question: the text, which with config.seed keys every draw.
        config: the options.

    Attributes:
        tree: the SearchTree.
        asked: tickets told or in flight, at most config.expansions. in_flight: these.
        expansions: tickets told. rollout_nodes: nodes that their rollouts left behind.
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
        try:
            while len(tickets) < n and (ticket := self._hand_out()) is not None:
                tickets.append(ticket)
        except BaseException:  # of the caller's own rule
            for ticket in reversed(tickets):
                self.abandon(ticket)
            raise
        return tickets

    def _hand_out(self) -> Ticket | None:
        """One ticket, or None when no more may be in flight or the tree has no free slot."""
        if self.asked >= self.config.expansions or len(self.in_flight) >= self.config.parallel:
            return None
        node = self._select(self.tree, self.config)
        if node is None:
            return None
        ordinal = self.tree.start_child(node)
        self.tree.add_virtual(node, 1)
        ticket = Ticket(node, ordinal, child_seed(self.tree.seed[node], ordinal))
        self.asked += 1
        self.in_flight.append(ticket)
        return ticket

    def grow(
        self,
        ticket: Ticket,
        token_ids: Sequence[int],
        logprobs: Sequence[float | None],
        confidences: Sequence[float | None],
        *,
        end: End | None = None,
        finished: bool = False,
        more: bool = False,
    ) -> int:
        """An action of the ticket is decoded: it becomes a node, which others may select.

        Args:
            ticket: from ask(), not told yet.
            token_ids: of the action, 0 to 2^31 - 1, at least one; texts where there are no ids.
            logprobs: of each token, natural logarithms. confidences: in [0, 1]; one may be above by
                0.001, a rounding. Both are None where a token was forced.
            end: why nothing can follow: "eos", "reply" (the reply's format ended), "loop",
                "context" or "kv_full"; None where something can.
            finished: the path, which ended by "eos" or "reply", has an answer.
            more: the rollout goes on: the ticket moves to the new node's first child.

        Returns:
            The new node.

        Raises:
            ValueError: the ticket is not in flight in this search, its branch has ended, `end`,
                `finished` and `more` contradict each other, or one of them or a column is not as
                above.
        """
        self._check(ticket)
        if not ticket.growing:
            raise ValueError("expected tell() after grow() without more, got another action")
        _check_end(end, finished, more)
        columns = action_columns(token_ids, logprobs, confidences)
        node = self.tree.add(
            ticket.node,
            ticket.ordinal,
            *columns,
            end=end,
            finished=finished,
            rollout=bool(ticket.nodes),
            seed=ticket.seed,
        )
        self.tree.virtual_visits[node] += 1
        ticket.nodes.append(node)
        ticket.node, ticket.growing = node, more
        if more:
            ticket.ordinal = self.tree.start_child(node)
            ticket.seed = child_seed(self.tree.seed[node], ticket.ordinal)
        return node

    def tell(self, ticket: Ticket, value: float | None = None) -> None:
        """The ticket's branch has ended: back its value up. Telling twice changes nothing.

        Args:
            ticket: from ask(), with at least one grow().
            value: of the path, any finite number; by default as config.value says.

        Raises:
            ValueError: the ticket never grew or is another search's, or the value is not finite.
        """
        if ticket.done:
            return
        self._check(ticket)
        if not ticket.nodes:
            raise ValueError("expected a ticket with at least one action, got none")
        number = self._value(ticket) if value is None else as_float(value)
        if number is None:
            raise ValueError(f"expected a finite value of a path, got {shown(value)}")
        self._close(ticket)
        self.tree.backup(ticket.node, number)
        self.expansions += 1
        self.rollout_nodes += len(ticket.nodes) - 1

    def abandon(self, ticket: Ticket) -> None:
        """The ticket's branch was given up: its nodes stay, without its visit.

        The slot of the action that was being decoded is free again, with the same seed, and the
        expansion is not used up: ask() hands it out once more. Abandoning twice changes nothing.

        Raises:
            ValueError: the ticket is another search's.
        """
        if not ticket.done:
            self._check(ticket)
            self._close(ticket)
            self.tree.add_virtual(ticket.node, -1)
            self.asked -= 1

    def close(self, node: int, end: End) -> None:
        """Nothing can follow the node any more, though its path has not ended by itself.

        `end` says why: "context" or "kv_full".
        """
        self.tree.close(node, end)

    def _check(self, ticket: Ticket) -> None:
        if ticket.done or ticket not in self.in_flight:
            got = "told or abandoned" if ticket.done else "made by another search"
            raise ValueError(f"expected a ticket in flight, got one that was {got}")

    def _close(self, ticket: Ticket) -> None:
        ticket.done = True
        self.in_flight.remove(ticket)
        if ticket.growing:
            self.tree.return_child(ticket.node, ticket.ordinal)

    def _select_by_own_rule(self, tree: SearchTree, config: SearchConfig) -> int | None:
        """What the caller's own selection rule says, checked."""
        assert callable(config.select)
        chosen = config.select(tree, config)
        if chosen is None:
            return None
        node = as_int(chosen)
        inside = node is not None and 0 <= node < len(tree)
        if node is None or not inside or tree.terminal[node] or tree.started[node] >= tree.slots:
            raise ValueError(
                "expected a selection rule to return a node with a free child slot, or None, got "
                f"{shown(chosen)}"
            )
        return node

    def _value(self, ticket: Ticket) -> float:
        rule = self.config.value
        named = VALUES[rule if isinstance(rule, str) else "path"]
        return named(self.tree, ticket.node, self.tree.parent[ticket.nodes[0]])


def _check_end(end: End | None, finished: bool, more: bool) -> None:
    """Raise ValueError unless an action can end so."""
    if end is not None and not (isinstance(end, str) and end in ENDS):
        expected = ", ".join(repr(each) for each in ENDS)
        raise ValueError(f"expected end to be None or one of {expected}, got {shown(end)}")
    if end is not None and more:
        raise ValueError(f"expected end or more, got {end!r} and more")
    if finished and end not in ("eos", "reply"):
        raise ValueError(f"expected a finished path to end by 'eos' or 'reply', got {shown(end)}")
