"""What a forest tells its caller: results and their figures, and progress while it runs."""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from functools import partial

from marco_fast.engine.branches import Branch
from marco_fast.engine.engine import Engine
from marco_fast.engine.scheduler import Scheduler
from marco_fast.forest.callbacks import parsed
from marco_fast.forest.foresight import Pace, remaining_seconds
from marco_fast.forest.question import Question
from marco_fast.forest.result import Progress, SearchResult, SearchStats
from marco_fast.search.answer import AnswerGroup, group_answers
from marco_fast.search.replies import Reply
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
        self.began, self.pace = time.perf_counter(), Pace()
        self.shown: Branch | None = None

    def result(self, question: Question) -> SearchResult:
        """What came out of a question's search."""
        tree, node = question.search.tree, _final_answer(question)
        groups = _groups(question, node)
        if node is None:
            node, answer, thought = self._best_unfinished(question)
        else:
            answer, thought = question.answers[node], self._reply(question, node).thought
        value = tree.end_value[node]
        return SearchResult(
            question=question.messages[-1]["content"],
            messages=question.messages,
            answer=answer,
            thought=thought,
            final=question.finals.get(node, "") if groups else "",
            finished=bool(groups),
            confidence=tree.path_confidence(node) if math.isnan(value) else value,
            support=groups[0].support if groups else 0.0,
            answers=groups,
            tree=tree,
            path_answers=question.answers,
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
        groups = _groups(question, best)
        answer, thought = None, ""
        if best is not None:
            answer, thought = question.answers[best], self._reply(question, best).thought
        elif question.search.expansions:
            best, answer, thought = self._best_unfinished(question)
        seconds = time.perf_counter() - self.began
        return Progress(
            question=index,
            questions=len(questions),
            done=sum(each.released for each in questions),
            answer=answer,
            thought=thought,
            live=self._live(question),
            value=0.0 if best is None else tree.end_value[best],
            final=groups[0].final if groups else "",
            finished=bool(groups),
            support=groups[0].support if groups else 0.0,
            finished_paths=sum(len(each.answers) for each in questions),
            remaining=self._remaining(seconds),
            expansions=sum(each.search.expansions for each in questions),
            target=question.config.expansions * len(questions),
            tokens=sum(each.tokens for each in questions),
            seconds=seconds,
            branches=len(scheduler.active),
            sharing=scheduler.path_tokens / max(1, scheduler.unique_tokens),
        )

    def _remaining(self, seconds: float) -> float | None:
        """Seconds until the last branch has ended, or a budget ends the search."""
        config, questions = self.questions[0].config, self.questions
        tokens = sum(each.tokens for each in questions)
        pace = self.pace.per_second(seconds, tokens)
        running = [
            sum(len(each.search.tree.token_ids[node]) for node in attempt.ticket.nodes)
            + len(branch.token_ids)
            for each in questions
            for branch, attempt in each.attempts.items()
        ]
        longest = self.engine.context - min(len(each.prompt) for each in questions)
        longest = min(longest, config.action_tokens + config.rollout_tokens)
        open_ones = [each for each in questions if not each.stop_reason]
        left = remaining_seconds(
            [length for each in questions for length in each.lengths],
            running,
            to_start=sum(each.config.expansions - each.search.asked for each in open_ones),
            longest=longest,
            pace=pace,
        )
        if left is None:
            return None
        if config.max_tokens is not None and pace > 0:
            left = min(left, max(0, config.max_tokens * len(questions) - tokens) / pace)
        if config.max_seconds is not None and len(questions) == 1:
            left = min(left, max(0.0, config.max_seconds - seconds))
        return left

    def _reply(self, question: Question, node: int) -> Reply:
        """The parts of the path's reply, as far as it goes."""
        text = path_text(self.engine, question.search.tree, node).decode(errors="replace")
        with contextlib.suppress(KeyboardInterrupt, Exception):
            # Of the caller's own format; the search is over, or ends with the same error.
            return parsed(question.form, text)
        return Reply("", None)

    def _best_unfinished(self, question: Question) -> tuple[int, str, str]:
        """Of paths without an answer that counts, the best: its node, its answer, its thought.

        Paths that say anything come first, those that ran in circles last; then the value decides.
        """
        tree = question.search.tree
        for node in _unfinished(tree):
            text = path_text(self.engine, tree, node).decode(errors="replace").strip()
            if text:
                reply = self._reply(question, node)
                return node, (reply.answer or "").strip() or text, reply.thought
        return next(_unfinished(tree)), "", ""

    def _live(self, question: Question) -> str:
        """The text of a path that is decoding, until it ends: the most confident one when it began.

        A reader follows it, so another that becomes a little more confident does not take its place.
        """
        if self.shown not in question.attempts:
            confidence = partial(_confidence, question)
            self.shown = max(question.attempts, key=confidence, default=None)
        if self.shown is None:
            return ""
        return question.attempts[self.shown].text.text.decode(errors="replace")

    def _stats(self, question: Question) -> SearchStats:
        search = question.search
        seconds = 0.0 if math.isnan(question.began) else question.ended - question.began
        per_second = 1 / seconds if seconds > 0 else 0.0
        return SearchStats(
            expansions=search.expansions,
            rollout_nodes=search.rollout_nodes,
            finished_paths=sum(map(search.tree.ended.__getitem__, question.answers)),
            distinct_paths=sum(map(bool, search.tree.ended)),
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


def _groups(question: Question, best: int | None) -> list[AnswerGroup]:
    """The finished paths by what they say; none where the answer rule chose none of them."""
    if best is None:
        return []
    rule = question.config.answer
    known = rule if isinstance(rule, str) else lambda tree, answers: best  # it was asked already
    return group_answers(question.search.tree, question.answers, question.finals, known)


def _unfinished(tree: SearchTree) -> Iterator[int]:
    """The ends of paths, the best first: with a value, then without; loops behind the others."""

    def rank(node: int) -> tuple[bool, float, int]:
        value = tree.end_value[node]
        value = tree.path_confidence(node) if math.isnan(value) else value
        return tree.end[node] != "loop", value, -node

    told = [node for node, count in enumerate(tree.ended) if count]
    yield from sorted(told, key=rank, reverse=True)
    ends = [node for node, below in enumerate(tree.children) if not below]
    yield from sorted(ends, key=rank, reverse=True)


def _confidence(question: Question, branch: Branch) -> float:
    """The mean confidence of a path that is decoding."""
    tree, node = question.search.tree, question.attempts[branch].ticket.node
    scored = [c for c in branch.confidences if c is not None]
    total = tree.path_sum[node] / FIXED_POINT + sum(scored)
    return total / max(1, tree.path_count[node] + len(scored))
