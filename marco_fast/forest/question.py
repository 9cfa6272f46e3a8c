"""One question of a forest: its search, its segments, its branches in flight, its budgets."""

import contextlib
import json
import math
from dataclasses import dataclass

from marco_fast.engine.branches import Branch, Segment
from marco_fast.forest.callbacks import own_final, own_value, parsed
from marco_fast.search.answer import choose_answer
from marco_fast.search.config import SearchConfig
from marco_fast.search.loops import LOOP_TOKENS, tokens_to_loop
from marco_fast.search.mcts import Search, Ticket
from marco_fast.search.replies import PathText, ReplyFormat
from marco_fast.search.tree import End

__all__ = ["Attempt", "Question", "shared_prefix"]


@dataclass(eq=False)
class Attempt:
    """A branch in flight.

    Attributes:
        ticket: of the search. text: of the path. rollout: tokens of its rollout so far.
        calm: the path cannot end in a loop in front of this position.
    """

    ticket: Ticket
    text: PathText
    rollout: int = 0
    calm: int = 0


class Question:
    """A question's state.

    Attributes:
        messages: the chat that the question ends. prompt: its token ids. form: of its replies.
        search: tree and tickets. segments: the segment of each node; terminal nodes have none.
        doubles: segments of nodes that were there already, with the same tokens.
        attempts: the branches in flight. answers, finals: the answer's text of each finished node,
            and what of it is compared.
        tokens: decoded so far, forced ones included. lengths: tokens of each branch that has ended.
        began, ended: times of the first branch and of the end; NaN before.
        failure: what the caller's own answer rule raised when it was last asked.
        stop_reason: "" while it may get more branches. error: what ended it, if anything did.
        released: whether its segments are given up.
    """

    def __init__(
        self,
        messages: list[dict[str, str]],
        prompt: list[int],
        form: ReplyFormat,
        root: Segment,
        config: SearchConfig,
    ) -> None:
        self.messages, self.prompt, self.form, self.config = messages, prompt, form, config
        self.search = Search(_key(messages), config)
        self.segments = {0: root}
        self.doubles: list[Segment] = []
        self.attempts: dict[Branch, Attempt] = {}
        self.answers: dict[int, str] = {}
        self.finals: dict[int, str] = {}
        self.tokens = 0
        self.lengths: list[int] = []
        self.began = self.ended = math.nan
        self.stop_reason = ""
        self.released = False
        self.failure: BaseException | None = None
        self.error: BaseException | None = None

    @property
    def best(self) -> int | None:
        """The finished node the search would answer with now; None where there is none.

        A caller's own answer rule may raise: `failure` then holds the error, and the tree is not
        lost with it.
        """
        self.failure = None
        try:
            return choose_answer(self.search.tree, self.answers, self.finals, self.config.answer)
        except Exception as error:
            self.failure = error
            return None

    @property
    def tokens_left(self) -> float:
        """What the budget of tokens still allows."""
        return math.inf if self.config.max_tokens is None else self.config.max_tokens - self.tokens

    @property
    def may_start(self) -> bool:
        """Whether it may get one more branch, which the budget has a token for."""
        return not self.stop_reason and len(self.attempts) < self.tokens_left

    @property
    def done(self) -> bool:
        """Whether nothing is in flight and nothing is left to start."""
        search = self.search
        return not self.attempts and (search.asked >= self.config.expansions or search.exhausted)

    @property
    def done_reason(self) -> str:
        """Why it ends when nothing stops it."""
        return "expansions" if self.search.asked >= self.config.expansions else "exhausted"

    def over_budget(self, now: float) -> str:
        """The budget that is used up: "seconds", "tokens", or "" for none."""
        config = self.config
        if config.max_seconds is not None and now - self.began >= config.max_seconds:
            return "seconds"
        return "tokens" if self.tokens_left <= 0 and not self.done else ""

    def grow(self, branch: Branch, *, end: End | None = None, more: bool = False) -> int:
        """The branch's open action becomes a node; `more`: its rollout goes on."""
        node = self.search.grow(
            self.attempts[branch].ticket,
            branch.token_ids,
            branch.logprobs,
            branch.confidences,
            end=end,
            more=more,
        )
        if end is None and self.segments.setdefault(node, branch.segment) is not branch.segment:
            self.doubles.append(branch.segment)
        return node

    def end(self, branch: Branch, end: End | None = None) -> None:
        """The branch's last action becomes a node, and its value is backed up."""
        node = self.grow(branch, end=end)
        if end in ("eos", "reply"):
            text = self.attempts[branch].text.text.decode(errors="replace")
            answer = parsed(self.form, text).answer
            if answer and not answer.isspace():
                self.finals[node] = own_final(self.config, answer, self.messages[-1]["content"])
                self.answers[node] = answer
                self.search.tree.finished[node] = True
        self._tell(branch)

    def loops(self, branch: Branch) -> bool:
        """Whether the last tokens of the branch's path repeat one run of a few tokens."""
        attempt, tree = self.attempts[branch], self.search.tree
        token_ids, node = branch.token_ids[-LOOP_TOKENS:], attempt.ticket.node
        while node and len(token_ids) < LOOP_TOKENS:
            token_ids = tree.token_ids[node][len(token_ids) - LOOP_TOKENS :] + token_ids
            node = tree.parent[node]
        left = tokens_to_loop(token_ids)
        attempt.calm = branch.position + left
        return left == 0

    def _tell(self, branch: Branch) -> None:
        """The branch has ended with the newest node of its ticket: its value is backed up."""
        attempt, tree = self.attempts[branch], self.search.tree
        node = attempt.ticket.node
        value = own_value(self.config, tree, node, attempt.text.text)
        self.search.tell(attempt.ticket, value)
        self.lengths.append(sum(len(tree.token_ids[each]) for each in attempt.ticket.nodes))
        del self.attempts[branch]
        for each in tree.path(node):
            if each in self.segments:
                self.segments[each].rank = tree.visits[each]

    def give_up(self, branch: Branch) -> None:
        """The branch has ended before the first token of its open action."""
        ticket = self.attempts[branch].ticket
        if ticket.nodes:
            self._tell(branch)
        else:
            self.search.abandon(ticket)
            del self.attempts[branch]

    def keep(self, branch: Branch) -> None:
        """Cut a branch off when the search was broken off, without the caller's own functions.

        One of them may be what broke it off. Without a value the tokens stay as a node without a
        visit.
        """
        ticket = self.attempts.pop(branch).ticket
        with contextlib.suppress(ValueError):  # an interrupt between the columns of a token
            if branch.token_ids and ticket.growing:
                self.search.grow(ticket, branch.token_ids, branch.logprobs, branch.confidences)
            if ticket.nodes and isinstance(self.config.value, str):
                self.search.tell(ticket)
        self.search.abandon(ticket)

    def release(self, now: float) -> list[Segment]:
        """The question has ended; returns its segments that are in the cache."""
        self.ended, self.released = now, True
        segments = [*self.doubles, *self.segments.values()]
        return [each for each in segments if each.kv >= 0]


def _key(messages: list[dict[str, str]]) -> str:
    """The text that keys a question's draws: the question and everything in front of it."""
    if len(messages) == 1:
        return messages[0]["content"]
    return json.dumps([[each["role"], each["content"]] for each in messages], ensure_ascii=False)


def shared_prefix(prompts: list[list[int]], page_size: int) -> int:
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
