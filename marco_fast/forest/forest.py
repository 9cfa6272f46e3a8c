"""Forest: the searches of several questions as one source of branches for the scheduler.

Tickets of the searches become branches; tokens become text, text becomes the ends of actions, and
those become tree nodes whose KV is the segment the tokens were decoded into.
"""

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from marco_fast.engine.engine import Engine
from marco_fast.engine.scheduler import Branch, Sampling, Scheduler, Segment, Verdict
from marco_fast.errors import KVCacheFull
from marco_fast.forest.result import Progress, SearchResult, SearchStats
from marco_fast.search.marco import REFLECTION, Event, PathText, parse_reply
from marco_fast.search.mcts import Search, SearchConfig, Ticket, choose_answer
from marco_fast.search.tree import FIXED_POINT, SearchTree

__all__ = ["Forest", "ProgressFunction"]

ProgressFunction = Callable[[Progress], None]
REPORT_SECONDS = 0.1


@dataclass(eq=False)
class _Run:
    """A branch in flight: its ticket, the text of its path, the tokens of its rollout so far."""

    ticket: Ticket
    text: PathText
    rollout: int = 0


class _Question:
    """One question: its search, and the segments that hold its nodes' KV."""

    def __init__(
        self, messages: list[dict[str, str]], prompt: list[int], root: Segment, config: SearchConfig
    ) -> None:
        self.messages, self.prompt = messages, prompt
        self.search = Search(_key(messages), config)
        self.segments = {0: root}  # tree node -> its segment; terminal nodes have none
        self.running: dict[Branch, _Run] = {}
        self.answers: dict[int, str] = {}  # finished node -> the text inside <Output>
        self.tokens = 0
        self.began = self.ended = math.nan
        self.stop_reason = ""
        self.released = False

    @property
    def best(self) -> int | None:
        """The finished node the search would answer with now."""
        return choose_answer(self.search.tree, self.answers, self.search.config.answer)


class Forest:
    """Searches questions together.

    Args:
        engine: decodes. chats, prompts: the messages of each question, and their token ids.
        config: of every search. report: called with a Progress now and then, or None.
        interrupted: when set, the search ends with the best so far.
    """

    def __init__(
        self,
        engine: Engine,
        chats: list[list[dict[str, str]]],
        prompts: list[list[int]],
        config: SearchConfig,
        report: ProgressFunction | None,
        interrupted: threading.Event,
    ) -> None:
        self.engine, self.config = engine, config
        self.report, self.interrupted = report, interrupted
        shared = _shared_prefix(prompts, engine.cache.page_size)
        root = Segment(None, 0, prompts[0][:shared], prompt=True) if shared else None
        self.questions = [
            _Question(each, prompt, Segment(root, shared, prompt[shared:-1], prompt=True), config)
            for each, prompt in zip(chats, prompts, strict=True)
        ]
        self.reflection = engine.tokenizer(REFLECTION, add_special_tokens=False)["input_ids"]
        sampling = Sampling(config.temperature, config.top_p, config.top_k)
        self.scheduler = Scheduler(engine, self, sampling, config.parallel * len(chats))
        self.first_open = 0  # all questions in front of it have handed out all their branches
        self.began = time.perf_counter()
        self.reported = -math.inf

    def run(self) -> list[SearchResult]:
        """Search until every question is done, the budgets end, or Ctrl-C; as solve() says."""
        reason = ""
        error: Exception | None = None
        try:
            self.scheduler.run()
        except KeyboardInterrupt:
            reason = "interrupted"
        except KVCacheFull as full:
            reason, error = "kv_full", full
        except Exception as failure:
            reason, error = "error", failure
        finally:
            self.scheduler.close()
        if error is not None and not any(each.tokens for each in self.questions):
            raise error
        for question in self.questions:
            self._abandon(question, reason)
        if self.report is not None:
            self.report(self.progress())
        return [self._result(each, error) for each in self.questions]

    def next_branch(self) -> Branch | None:
        """One more branch: of the first question that has one to hand out."""
        for index in range(self.first_open, len(self.questions)):
            question = self.questions[index]
            tickets = [] if question.stop_reason else question.search.ask()
            if tickets:
                return self._start(question, tickets[0])
            if index == self.first_open and question.released:
                self.first_open += 1
        return None

    def _start(self, question: _Question, ticket: Ticket) -> Branch:
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
        steps = self.config.action == "step"
        text = self._path_text(tree, node)
        text_state = PathText(text, steps=steps, reflect=self.config.reflect)
        question.running[branch] = _Run(ticket, text_state)
        return branch

    def on_token(self, branch: Branch) -> Verdict:
        """Append the newest token's text; see whether it ends an action or the path."""
        question: _Question = branch.owner
        run = question.running[branch]
        if run.text.reflect and not self._may_think_again(branch):
            run.text.reflect = False
        event = self._push(run, branch)
        if event is Event.THOUGHT:
            pieces = [self.engine.token_bytes[token] for token in branch.token_ids]
            kept = run.text.take_back(pieces)
            self.scheduler.take_back(branch, kept, self.reflection)
            event = self._push(run, branch)
        ended = branch.pending in self.engine.eos_ids and branch.logprobs[-1] is not None
        if event is Event.OUTPUT or ended or branch.position >= self.engine.context - 1:
            self._end(branch, terminal=True)
            return Verdict.CLOSE
        return self._cut(branch, run, event)

    def _may_think_again(self, branch: Branch) -> bool:
        """Whether the context has room for the reflection phrase and as many tokens as so far.

        A second thought that the context cuts off would take a path's answer away.
        """
        thought = branch.position - len(branch.owner.prompt) + 1
        return branch.position + len(self.reflection) + thought < self.engine.context

    def _push(self, run: _Run, branch: Branch) -> Event:
        branch.owner.tokens += 1
        run.rollout += bool(run.ticket.nodes)
        return run.text.push(self.engine.token_bytes[branch.token_ids[-1]])

    def _cut(self, branch: Branch, run: _Run, event: Event) -> Verdict:
        """Whether the action is complete, and whether the rollout goes on."""
        complete = event is Event.STEP
        if len(branch.token_ids) >= self.config.action_tokens:
            drawn = sum(logprob is not None for logprob in branch.logprobs)
            complete = complete or drawn >= self.config.action_tokens
        complete = complete and not run.text.may_take_back()
        more = run.rollout < self.config.rollout_tokens
        if not complete and (more or not run.ticket.nodes):
            return Verdict.CONTINUE
        if not more:
            self._end(branch)
            return Verdict.END
        self._grow(branch, more=True)
        run.text.begin_action()
        branch.seed = run.ticket.seed
        branch.token_ids, branch.logprobs, branch.confidences = [], [], []
        return Verdict.CUT

    def _grow(
        self, branch: Branch, *, terminal: bool = False, finished: bool = False, more: bool = False
    ) -> int:
        question: _Question = branch.owner
        node = question.search.grow(
            question.running[branch].ticket,
            branch.token_ids,
            branch.logprobs,
            branch.confidences,
            terminal=terminal,
            finished=finished,
            more=more,
        )
        if not terminal:
            question.segments[node] = branch.segment
        return node

    def _end(self, branch: Branch, *, terminal: bool = False) -> None:
        """The branch's last action becomes a node, and its value is backed up."""
        question: _Question = branch.owner
        run = question.running[branch]
        text = run.text.text.decode(errors="replace")
        answer = parse_reply(text).answer if terminal else None
        node = self._grow(branch, terminal=terminal, finished=answer is not None)
        if answer is not None:
            question.answers[node] = answer
        tree, value = question.search.tree, None
        if callable(self.config.value):
            path = tree.path(node)
            confidences = [c for each in path for c in tree.confidences[each]]
            value = self.config.value(tree.path_token_ids(node), confidences, text)
        question.search.tell(run.ticket, value)
        del question.running[branch]
        for each in tree.path(node):
            if each in question.segments:
                question.segments[each].rank = tree.visits[each]

    def on_step(self) -> bool:
        """Look at the budgets, give back what finished questions held, report."""
        now = time.perf_counter()
        for question in self.questions[self.first_open :]:
            if math.isnan(question.began):
                break  # questions are opened in order
            if not question.released:
                self._check_budgets(question, now)
        if self.report is not None and now - self.reported >= REPORT_SECONDS:
            self.reported = now
            self.report(self.progress())
        return not self.interrupted.is_set()

    def _check_budgets(self, question: _Question, now: float) -> None:
        config, search = self.config, question.search
        if self.interrupted.is_set():
            self._stop(question, "interrupted")
        elif config.max_seconds is not None and now - question.began >= config.max_seconds:
            self._stop(question, "seconds")
        elif (
            config.max_tokens is not None
            and question.tokens + len(question.running) > config.max_tokens
        ):
            self._stop(question, "tokens")
        elif not question.running and search.asked >= config.expansions:
            question.stop_reason = "expansions"
        elif not question.running and search.exhausted:
            question.stop_reason = "exhausted"
        if question.stop_reason and not question.running:
            question.ended, question.released = now, True
            held = [each for each in question.segments.values() if each.kv >= 0]
            self.scheduler.release(held)

    def _stop(self, question: _Question, reason: str) -> None:
        """End the question's branches where they are: cut off, like a rollout at its limit."""
        question.stop_reason = reason
        for branch, run in list(question.running.items()):
            self.scheduler.drop([branch])
            if branch.token_ids:
                self._end(branch)
                continue
            if run.ticket.nodes:
                question.search.tell(run.ticket)
            else:
                question.search.abandon(run.ticket)
            del question.running[branch]
            if branch.opened:
                self.scheduler.release([branch.segment])

    def _abandon(self, question: _Question, reason: str) -> None:
        """After the run: what is still in flight is given up, its finished nodes stay."""
        for run in question.running.values():
            question.search.abandon(run.ticket)
        question.running.clear()
        if not question.stop_reason:
            search = question.search
            done = "expansions" if search.asked >= self.config.expansions else "exhausted"
            question.stop_reason = reason or ("interrupted" if self.interrupted.is_set() else done)
        if not question.released:
            question.ended, question.released = time.perf_counter(), True

    def _result(self, question: _Question, error: BaseException | None) -> SearchResult:
        tree, node = question.search.tree, question.best
        confidence = 0.0 if node is None else tree.end_value[node]
        if node is None:  # no answer: the thought of the best path so far
            told = [each for each, value in enumerate(tree.end_value) if not math.isnan(value)]
            node = max(told, key=lambda each: (tree.end_value[each], -each), default=0)
        return SearchResult(
            question=question.messages[-1]["content"],
            messages=question.messages,
            answer=question.answers.get(node, ""),
            thought=self._thought(question, node),
            confidence=confidence,
            tree=tree,
            answers=question.answers,
            answer_node=node,
            stats=self._stats(question),
            stop_reason=question.stop_reason,
            model=self.engine.name,
            prompt_token_ids=question.prompt,
            token_bytes=self.engine.token_bytes,
            config=self.config,
            error=error if question.stop_reason in ("error", "kv_full") else None,
        )

    def _thought(self, question: _Question, node: int) -> str:
        text = self._path_text(question.search.tree, node)
        return parse_reply(text.decode(errors="replace")).thought

    def _path_text(self, tree: SearchTree, node: int) -> bytes:
        return b"".join(self.engine.token_bytes[token] for token in tree.path_token_ids(node))

    def _stats(self, question: _Question) -> SearchStats:
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

    def _live(self, question: _Question) -> str:
        """The text of the path that is decoding with the highest mean confidence."""

        def confidence(branch: Branch) -> float:
            tree, node = question.search.tree, question.running[branch].ticket.node
            scored = [c for c in branch.confidences if c is not None]
            total = tree.path_sum[node] / FIXED_POINT + sum(scored)
            return total / max(1, tree.path_count[node] + len(scored))

        best = max(question.running, key=confidence, default=None)
        return "" if best is None else question.running[best].text.text.decode(errors="replace")

    def progress(self) -> Progress:
        """Where the search is now."""
        begun = [index for index, each in enumerate(self.questions) if not math.isnan(each.began)]
        running = [index for index in begun if not self.questions[index].released]
        index = (running or begun or [0])[0]
        question = self.questions[index]
        best = question.best
        tree = question.search.tree
        return Progress(
            question=index,
            questions=len(self.questions),
            done=sum(each.released for each in self.questions),
            answer=None if best is None else question.answers[best],
            thought="" if best is None else self._thought(question, best),
            live=self._live(question),
            value=0.0 if best is None else tree.end_value[best],
            expansions=sum(each.search.expansions for each in self.questions),
            target=self.config.expansions * len(self.questions),
            tokens=sum(each.tokens for each in self.questions),
            seconds=time.perf_counter() - self.began,
            branches=len(self.scheduler.active),
            sharing=self.scheduler.path_tokens / max(1, self.scheduler.unique_tokens),
        )


def _key(messages: list[dict[str, str]]) -> str:
    """What keys a question's draws: its text, with all that stands in front of it."""
    if len(messages) == 1:
        return messages[0]["content"]
    return json.dumps([[each["role"], each["content"]] for each in messages], ensure_ascii=False)


def _shared_prefix(prompts: list[list[int]], page_size: int) -> int:
    """How many first tokens all prompts share, each keeping its last for itself; 0 if not worth it.

    Less than a page shared would save nothing: segments start on fresh pages.
    """
    if len(prompts) < 2:
        return 0
    length = 0
    for column in zip(*(prompt[:-1] for prompt in prompts), strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length if length >= page_size else 0
