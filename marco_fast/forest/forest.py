"""Forest: the searches of several questions as one source of branches for the scheduler.

Tickets of the searches become branches; tokens become text, text becomes the ends of actions, and
those become tree nodes whose KV is the segment the tokens were decoded into.

The scheduler owns the loop: Scheduler.run() asks this source for branches, decodes, and calls back
for every token and after every step (engine/branches.py: Source).
"""

import contextlib
import math
import threading
import time

from marco_fast.engine.branches import Branch, Segment, Verdict
from marco_fast.engine.engine import Engine
from marco_fast.engine.scheduler import Scheduler
from marco_fast.errors import KVCacheFull
from marco_fast.forest.callbacks import ProgressFunction, Watcher
from marco_fast.forest.question import Attempt, Question, shared_prefix
from marco_fast.forest.report import Report, path_text
from marco_fast.forest.result import SearchResult
from marco_fast.search.config import SearchConfig
from marco_fast.search.marco import REFLECTION
from marco_fast.search.mcts import Ticket
from marco_fast.search.replies import Event, PathText, ReplyFormat
from marco_fast.search.tree import End

__all__ = ["Forest", "ProgressFunction"]

REPORT_SECONDS = 0.1
DRAWING = ("temperature", "top_p", "min_p", "sample_top_k", "top_k")  # as sample_confidence's


class Forest:
    """Searches questions together.

    Args:
        engine: decodes. chats, prompts: the messages of each question, and their token ids.
        forms: the format of each question's replies.
        config: of every search. report: called with a Progress now and then, or None.
        interrupted: when set, the search ends with the best so far.
    """

    def __init__(
        self,
        engine: Engine,
        chats: list[list[dict[str, str]]],
        prompts: list[list[int]],
        forms: list[ReplyFormat],
        config: SearchConfig,
        report: ProgressFunction | None,
        interrupted: threading.Event,
    ) -> None:
        if config.top_k > len(engine.token_bytes):
            raise ValueError(
                f"expected top_k of at most {len(engine.token_bytes)}, the model's vocabulary, got "
                f"{config.top_k}"
            )
        self.engine, self.config = engine, config
        self.watcher, self.interrupted = Watcher(report), interrupted
        shared = shared_prefix(prompts, engine.cache.page_size)
        root = Segment(None, 0, prompts[0][:shared], prompt=True) if shared else None
        self.questions = [
            Question(
                chat, prompt, form, Segment(root, shared, prompt[shared:-1], prompt=True), config
            )
            for chat, prompt, form in zip(chats, prompts, forms, strict=True)
        ]
        self.reflection = engine.tokenizer(REFLECTION, add_special_tokens=False)["input_ids"]
        options = {name: getattr(config, name) for name in DRAWING}
        self.scheduler = Scheduler(engine, self, options, config.parallel * len(chats))
        self.report = Report(engine, self.scheduler, self.questions)
        self.first_open = 0  # all questions in front of it have handed out all their branches
        self.reported = -math.inf

    def run(self) -> list[SearchResult]:
        """Search until every question is done, the budgets end, or Ctrl-C; as solve() says."""
        reason = ""
        error: Exception | None = None
        try:
            self.scheduler.run()
        except KeyboardInterrupt:
            reason = "interrupted"
        except Exception as failure:
            reason = "kv_full" if isinstance(failure, KVCacheFull) else "error"
            error = failure
        finally:
            self._close()
            del self.scheduler.source  # a ring would keep the cache until Python looks for rings
        for question in self.questions:
            self._finish(question, reason, error)
        failed = [each.error for each in self.questions if each.error is not None]
        everything = error is not None or len(failed) == len(self.questions)
        if failed and everything and not any(each.tokens for each in self.questions):
            raise failed[0]
        with contextlib.suppress(KeyboardInterrupt, RuntimeWarning):  # the results are there
            self.watcher.show(self.report.progress())
        return [self.report.result(each) for each in self.questions]

    def _close(self) -> None:
        """Give every page back, also when a second Ctrl-C comes in between."""
        try:
            self.scheduler.close()
        except BaseException:
            self.scheduler.close()
            raise

    def next_branch(self) -> Branch | None:
        """One more branch: of the first question that has one to hand out."""
        for index in range(self.first_open, len(self.questions)):
            question = self.questions[index]
            tickets = question.search.ask() if question.may_start else []
            if tickets:
                return self._start(question, tickets[0])
            if index == self.first_open and question.released:
                self.first_open += 1
        return None

    def _start(self, question: Question, ticket: Ticket) -> Branch:
        if math.isnan(question.began):
            question.began = time.perf_counter()
        tree, node = question.search.tree, ticket.node
        segment = question.segments[node]
        branch = Branch(
            owner=question,
            segment=segment,
            pending=(tree.token_ids[node] or question.prompt)[-1],
            position=segment.start + len(segment.tokens),
            seed=ticket.seed,
        )
        text = PathText(
            path_text(self.engine, tree, node),
            question.form,
            steps=self.config.action == "step",
            reflect=self.config.reflect,
        )
        question.attempts[branch] = Attempt(ticket, text)
        return branch

    def on_token(self, branch: Branch) -> Verdict:
        """Append the newest token's text; see whether it ends an action or the path."""
        question: Question = branch.owner
        attempt = question.attempts[branch]
        if attempt.text.reflect and not self._may_think_again(branch):
            attempt.text.reflect = False
        event = self._push(attempt, branch)
        if event is Event.THOUGHT or (self._at_eos(branch) and attempt.text.may_reflect_at_end()):
            event = self._think_again(branch, attempt)
        end: End | None = None
        if event is Event.ANSWER:
            end = "reply"
        elif self._at_eos(branch):
            end = "eos"
        elif branch.position >= attempt.calm and question.loops(branch):
            end = "loop"
        elif branch.position >= self.engine.context - 1:
            end = "context"
        if end is not None:
            question.end(branch, end)
            return Verdict.CLOSE
        return self._cut(branch, attempt, event)

    def _at_eos(self, branch: Branch) -> bool:
        """Whether the model has ended the path with its newest token."""
        return branch.pending in self.engine.eos_ids and branch.logprobs[-1] is not None

    def _think_again(self, branch: Branch, attempt: Attempt) -> Event:
        """Take back the tokens that end the thought, or the reply, and put the phrase there."""
        pieces = [self.engine.token_bytes[token] for token in branch.token_ids]
        kept = attempt.text.take_back(pieces)
        self.scheduler.take_back(branch, kept, self.reflection)
        attempt.calm = 0
        return self._push(attempt, branch)

    def _may_think_again(self, branch: Branch) -> bool:
        """Whether the context has room for the reflection phrase and as many tokens as so far.

        A second thought that the context cuts off would take a path's answer away. The budget must
        have a token to spare: the phrase's first one is put in the same step as what it replaces.
        """
        if branch.owner.tokens_left <= len(branch.owner.attempts):
            return False
        thought = branch.position - len(branch.owner.prompt) + 1
        return branch.position + len(self.reflection) + thought < self.engine.context

    def _push(self, attempt: Attempt, branch: Branch) -> Event:
        branch.owner.tokens += 1
        attempt.rollout += bool(attempt.ticket.nodes)
        return attempt.text.push(self.engine.token_bytes[branch.token_ids[-1]])

    def _cut(self, branch: Branch, attempt: Attempt, event: Event) -> Verdict:
        """Whether the action is complete, and whether the rollout goes on."""
        complete = event is Event.STEP
        if len(branch.token_ids) >= self.config.action_tokens:
            drawn = sum(logprob is not None for logprob in branch.logprobs)
            complete = complete or drawn >= self.config.action_tokens
        complete = complete and not attempt.text.may_take_back()
        more = attempt.rollout < self.config.rollout_tokens
        if not complete and (more or not attempt.ticket.nodes):
            return Verdict.CONTINUE
        if not more:
            branch.owner.end(branch)
            return Verdict.END
        branch.owner.grow(branch, more=True)
        attempt.text.begin_action()
        branch.seed = attempt.ticket.seed
        return Verdict.CUT

    def on_full(self, branch: Branch, full: KVCacheFull) -> None:
        """The branch's path fills the cache: it ends there, as at the end of the context."""
        question: Question = branch.owner
        if branch.token_ids:
            question.end(branch, "kv_full")
            return
        node = question.attempts[branch].ticket.node
        question.give_up(branch)
        question.search.close(node, "kv_full")
        if node == 0:
            question.error, question.stop_reason = full, "kv_full"

    def on_step(self) -> bool:
        """Look at the budgets, give back what finished questions held, report."""
        now = time.perf_counter()
        # Read once: what is set after this waits for the next step, which ends its branches.
        interrupted = self.interrupted.is_set()
        for question in self.questions[self.first_open :]:
            if math.isnan(question.began):
                break  # questions are opened in order
            if not question.released:
                self._check_budgets(question, now, interrupted)
        if self.watcher.function is not None and now - self.reported >= REPORT_SECONDS:
            self.reported = now
            self.watcher.show(self.report.progress())
        return not interrupted

    def _check_budgets(self, question: Question, now: float, interrupted: bool) -> None:
        reason = "interrupted" if interrupted else question.over_budget(now)
        if reason:
            self._stop(question, reason)
        elif question.done:
            question.stop_reason = question.stop_reason or question.done_reason
        if question.stop_reason and not question.attempts:
            self.scheduler.release(question.release(now))
        while question.attempts and len(question.attempts) > question.tokens_left:
            self._cut_off(next(reversed(question.attempts)))

    def _stop(self, question: Question, reason: str) -> None:
        """End the question's branches where they are."""
        question.stop_reason = question.stop_reason or reason
        for branch in list(question.attempts):
            self._cut_off(branch)

    def _cut_off(self, branch: Branch) -> None:
        """End a branch where it is, like a rollout at its limit."""
        self.scheduler.drop([branch])
        if branch.token_ids:
            branch.owner.end(branch)
            return
        branch.owner.give_up(branch)
        if branch.opened:
            self.scheduler.release([branch.segment])

    def _finish(self, question: Question, reason: str, error: Exception | None) -> None:
        """After the end: what is still in flight keeps its tokens, and no page."""
        for branch in list(question.attempts):
            question.keep(branch)
        if not question.stop_reason:
            done = question.done_reason
            question.stop_reason = reason or ("interrupted" if self.interrupted.is_set() else done)
            question.error = error
        if not question.released:
            question.release(time.perf_counter())
