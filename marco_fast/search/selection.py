"""Selection: which node of the tree gets its next child. A rule is a function of tree and options.

A rule walks the whole way down itself, so that the default one stays a loop over flat lists.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from marco_fast.search.tree import SearchTree

if TYPE_CHECKING:
    from marco_fast.search.config import SearchConfig

__all__ = ["RULES", "SelectFunction", "uct"]

SelectFunction = Callable[[SearchTree, "SearchConfig"], int | None]
"""A node that is not terminal and has a free child slot, or None: nothing can be expanded now."""


def uct(tree: SearchTree, config: "SearchConfig") -> int | None:
    """The node to give a child: down from the root by WU-UCT (arXiv 1810.11755).

    A full node (all its child slots handed out) passes on to the child with the largest
    Q + c_uct * sqrt(2 ln N_parent / N_child), where N counts visits in flight and the mean
    value Q does not; a child without a completed visit has its parent's Q. Equal scores: the
    older child, or the one with fewer visits where values are so large (2^990) that exploration is
    lost beside them. With virtual_loss a visit in flight counts in Q as well, with the value 0.

    Returns:
        The node, or None when every slot of the tree is handed out.
    """
    if tree.open_slots[0] == 0:
        return None
    visits, virtual, value_sum = tree.visits, tree.virtual_visits, tree.value_sum
    open_slots, c_uct, virtual_loss = tree.open_slots, config.c_uct, config.virtual_loss
    low, spread, huge = 0.0, 1.0 / tree.value_unit, tree.value_unit != 1.0
    least, most = tree.value_min, tree.value_max
    if config.normalize and most > least:
        low, spread = least, most - least
    node = 0
    while tree.started[node] >= tree.slots or tree.terminal[node]:
        total = visits[node] + virtual[node]
        explore = 2.0 * math.log(total) if total > 1 else 0.0
        fallback = value_sum[node] / visits[node] if visits[node] else low
        best_score, best, best_count = -math.inf, -1, 0
        for child in tree.children[node]:
            if open_slots[child] == 0:
                continue
            count = visits[child] + virtual[child] or 1
            seen = count if virtual_loss else visits[child]
            mean = value_sum[child] / seen if seen else fallback
            if huge and not virtual_loss:
                mean = min(max(mean, least), most)  # else equal values may differ by a rounding
            score = (mean - low) / spread + c_uct * math.sqrt(explore / count)
            rarer = huge and score == best_score and count < best_count
            if score > best_score or best < 0 or rarer:
                best_score, best, best_count = score, child, count
        node = best
    return node


RULES: dict[str, SelectFunction] = {"uct": uct}
