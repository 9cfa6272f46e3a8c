"""The caller's own functions: each is called here, and what it returns is checked.

One that fails ends the search with what it has, but for a progress function: a search does not
depend on who watches it.
"""

import traceback
import warnings
from collections.abc import Callable

from marco_fast.forest.result import Progress
from marco_fast.search.config import SearchConfig
from marco_fast.search.final import final_of
from marco_fast.search.numbers import shown
from marco_fast.search.replies import Reply, ReplyFormat
from marco_fast.search.tree import SearchTree

__all__ = ["ProgressFunction", "Watcher", "own_final", "own_value", "parsed"]

ProgressFunction = Callable[[Progress], None]


def parsed(form: ReplyFormat, text: str) -> Reply:
    """The parts of a reply.

    Raises:
        ValueError: a format of the caller's own returned something else than a Reply of texts.
    """
    reply = form.parse(text)
    thought, answer = getattr(reply, "thought", None), getattr(reply, "answer", False)
    if not isinstance(thought, str) or not (answer is None or isinstance(answer, str)):
        raise ValueError(
            f"expected the parse function of reply format {form.name!r} to return a Reply whose "
            f"parts are texts, got {shown(reply)}"
        )
    return reply


def own_value(config: SearchConfig, tree: SearchTree, node: int, text: bytearray) -> float | None:
    """The value of the path that ends at `node` by the caller's function; None without one.

    Raises:
        ValueError: the function returned None. Other values are checked by Search.tell().
    """
    if isinstance(config.value, str):
        return None
    confidences = [each for above in tree.path(node) for each in tree.confidences[above]]
    value = config.value(tree.path_token_ids(node), confidences, text.decode(errors="replace"))
    if value is None:
        raise ValueError("expected a value function to return a finite number, got None")
    return value


def own_final(config: SearchConfig, answer: str, question: str) -> str:
    """What of an answer is compared: by the caller's function, or by the rule for all questions.

    Raises:
        ValueError: the caller's function returned no text.
    """
    final = (config.final or final_of)(answer, question)
    if not isinstance(final, str):
        raise ValueError(f"expected a final function to return a text, got {shown(final)}")
    return final


class Watcher:
    """Calls a progress function until it fails, which is a warning.

    Args:
        function: the caller's, or None.
    """

    def __init__(self, function: ProgressFunction | None) -> None:
        self.function = function

    def show(self, progress: Progress) -> None:
        """Call the function. A KeyboardInterrupt in it is Ctrl-C."""
        if self.function is None:
            return
        try:
            self.function(progress)
        except Exception as error:
            self.function = None
            why = "".join(traceback.format_exception_only(error)).strip()  # even if str() fails
            warnings.warn(
                f"the progress function failed and is not called any more: {why}",
                RuntimeWarning,
                stacklevel=2,
            )
