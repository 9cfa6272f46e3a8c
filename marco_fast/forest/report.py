"""What a forest tells its caller: results and their figures, and progress while it runs."""

import contextlib
import math
import time
from collections.abc import Sequence

from marco_fast.engine.branches import Branch
from marco_fast.engine.engine import Engine
from marco_fast.engine.scheduler import Scheduler
from marco_fast.forest.callbacks import parsed
from marco_fast.forest.question import Question
from marco_fast.forest.result import Progress, SearchResult, SearchStats
from marco_fast.search.tree import FIXED_POINT, SearchTree

__all__ = ["Report", "path_text"]


def path_text(engine: Engine, tree: SearchTree, node: int) -> bytes:
    """The text of the path from the root to `node`."""
    return b"".join(engine.token_bytes[token] for token in tree.path_token_ids(node))


class Report:
    """Results and progress of the questions of one call.

    Args:
        engine: decodes. scheduler: counts KV tokens and active branches.
        questions: in the order of the call.
    """

    def __init__(self, engine: Engine, scheduler: Scheduler, questions: Sequence[Question]) -> None:
        self.engine, self.scheduler, self.questions = engine, scheduler, questions
        self.began = time.perf_counter()

    def result(self, question: Question) -> SearchResult:
        """What came out of a question's search."""
        tree, node = question.search.tree, _final_answer(question)
        confidence = 0.0 if node is None else tree.end_value[node]
        if node is None:  # no answer: the thought of the best path so far
            node = _best_so_far(tree)
        thought = ""
        with contextlib.suppress(KeyboardInterrupt):  # the search is over, see _final_answer
            thought = self._thought(question, node)
        return SearchResult(
            question=question.messages[-1]["content"],
            messages=question.messages,
            answer=question.answers.get(node, ""),
            thought=thought,
            confidence=confidence,
            tree=tree,
            answers=question.answers,
            answer_node=node,
            stats=self._stats(question),
            stop_reason=question.stop_reason,
            model=self.engine.name,
            prompt_token_ids=question.prompt,
            token_bytes=self.engine.token_bytes,
            config=question.config,
            error=question.error,
        )

    def progress(self) -> Progress:
        """Where the search is now."""
        questions, scheduler = self.questions, self.scheduler
        begun = [index for index, each in enumerate(questions) if not math.isnan(each.began)]
        running = [index for index in begun if not questions[index].released]
        index = (running or begun or [0])[0]
        question = questions[index]
        best, tree = question.best, question.search.tree
        return Progress(
            question=index,
            questions=len(questions),
            done=sum(each.released for each in questions),
            answer=None if best is None else question.answers[best],
            thought="" if best is None else self._thought(question, best),
            live=_live(question),
            value=0.0 if best is None else tree.end_value[best],
            expansions=sum(each.search.expansions for each in questions),
            target=question.config.expansions * len(questions),
            tokens=sum(each.tokens for each in questions),
            seconds=time.perf_counter() - self.began,
            branches=len(scheduler.active),
            sharing=scheduler.path_tokens / max(1, scheduler.unique_tokens),
        )

    def _thought(self, question: Question, node: int) -> str:
        text = path_text(self.engine, question.search.tree, node).decode(errors="replace")
        try:
            return parsed(question.config.reply_format, text).thought
        except Exception:  # of the caller's own format: the search has ended with it already
            return ""

    def _stats(self, question: Question) -> SearchStats:
        search = question.search
        seconds = 0.0 if math.isnan(question.began) else question.ended - question.began
        per_second = 1 / seconds if seconds > 0 else 0.0
        return SearchStats(
            expansions=search.expansions,
            rollout_nodes=search.rollout_nodes,
            expansions_per_second=search.expansions * per_second,
            tokens=question.tokens,
            tokens_per_second=question.tokens * per_second,
            seconds=seconds,
            kv_tokens_unique=self.scheduler.unique_tokens,
            kv_tokens_path=self.scheduler.path_tokens,
        )


def _final_answer(question: Question) -> int | None:
    """The finished node that answers. A failure of the caller's own rule is the search's error."""
    try:
        node = question.best
    except KeyboardInterrupt as error:  # the search is over: it is not lost for its last step
        node, question.failure = None, error
    if question.failure is not None:
        question.error, question.stop_reason = question.failure, "error"
    return node


def _best_so_far(tree: SearchTree) -> int:
    """The end of the path with the highest value; without any the path of highest confidence."""
    told = [each for each, value in enumerate(tree.end_value) if not math.isnan(value)]
    if told:
        return max(told, key=lambda each: (tree.end_value[each], -each))
    ends = [each for each, below in enumerate(tree.children) if not below]
    return max(ends, key=lambda each: (tree.path_confidence(each), -each))


def _live(question: Question) -> str:
    """The text of the path that is decoding with the highest mean confidence."""

    def confidence(branch: Branch) -> float:
        tree, node = question.search.tree, question.attempts[branch].ticket.node
        scored = [c for c in branch.confidences if c is not None]
        total = tree.path_sum[node] / FIXED_POINT + sum(scored)
        return total / max(1, tree.path_count[node] + len(scored))

    best = max(question.attempts, key=confidence, default=None)
    return "" if best is None else question.attempts[best].text.text.decode(errors="replace")
