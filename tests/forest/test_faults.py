"""One search with evictions, reflection, rollouts and two questions, failed at every of its parts.

Whatever fails: a typed error or results with all that was decoded, every page back, and an engine
that gives the same tree as before.
"""

import itertools
import os
from pathlib import Path

import pytest

import marco_fast.forest.forest
from marco_fast import Engine, KVCacheFull, Reply, ReplyFormat, SearchConfig, solve
from marco_fast.search.selection import uct
from tests.support.faults import Faults, sites
from tests.support.searches import QUESTION, same_tree

QUESTIONS = [QUESTION, "What is 17 + 26?"]
POINTS = 240
PAGES = 22
ERRORS = (
    lambda: RuntimeError("injected"),
    lambda: KeyboardInterrupt("injected"),
    lambda: MemoryError("injected"),
    lambda: KVCacheFull(1, 0, PAGES),
    lambda: OSError("injected"),
    lambda: SystemExit("injected"),
)
AFTER = SearchConfig(expansions=1, step_tokens=6, rollout_tokens=0)


class Searched:
    """The search, its parts watched, and how it goes without a fault."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.engine = Engine.from_pretrained(folder, kv_tokens=16 * PAGES)
        self.faults = faults = Faults()
        faults.watch(self.engine, patch)
        # A random model's text: "z" ends a thought, "q" the reply.
        parse = faults.wrapped("parse", lambda text: Reply(text, text[-1:]))
        self.config = SearchConfig(
            expansions=3, children=2, step_tokens=12, rollout_tokens=30, parallel=3, seed=3,
            temperature=1.2, reflect=True, reply=ReplyFormat("own", b"z", b"q", parse),
            value=faults.wrapped("value", lambda tokens, confidences, text: len(tokens) / 1000),
            select=faults.wrapped("select", uct),
            answer=faults.wrapped("answer", lambda tree, answers: min(answers)),
        )  # fmt: skip
        self.want = self.run()
        self.calls = faults.calls.copy()
        self.first_tokens = solve(QUESTION, self.engine, AFTER)
        self.tokens = {
            seed: (tree.token_ids[node], tree.confidences[node])
            for tree in (result.tree for result in self.want)
            for node, seed in enumerate(tree.seed)
        }

    def run(self):
        shown = self.faults.wrapped("progress", lambda progress: None)
        return solve(QUESTIONS, self.engine, self.config, progress=shown)

    def check(self, results) -> None:
        """What is there is whole, and what the search without a fault has."""
        for result in results:
            tree = result.tree
            assert len(result.to_dict()["nodes"]) == len(tree)
            assert not any(tree.virtual_visits)
            for node, seed in enumerate(tree.seed):
                if seed not in self.tokens:
                    continue
                tokens, confidences = self.tokens[seed]
                both = list(zip(tokens, tree.token_ids[node], strict=False))
                same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both))
                assert same >= len(both) - 1  # one that a reflection takes back
                assert confidences[:same] == tree.confidences[node][:same]

    def check_engine(self, *, wholly: bool) -> None:
        """The engine is as it was."""
        self.faults.arm(None)
        assert self.engine.cache.used_pages == 0
        assert not self.engine.lock.locked()
        assert same_tree(solve(QUESTION, self.engine, AFTER), self.first_tokens)
        if wholly:
            assert all(map(same_tree, self.run(), self.want))


@pytest.fixture(scope="module")
def searched(folders):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marco_fast.forest.forest, "REPORT_SECONDS", 0.0)
        made = Searched(folders["qwen2"], patch)
        yield made
        made.engine.close()


def test_the_search_has_what_is_to_fail(searched):
    calls = searched.calls
    assert min(calls[name] for name in ("sample", "compute", "restore", "evict", "truncate")) > 0
    assert min(calls[name] for name in ("value", "parse", "answer", "progress", "select")) > 0
    assert [result.stop_reason for result in searched.want] == ["expansions"] * 2
    assert all(result.stats.rollout_nodes for result in searched.want)
    assert len(sites(calls, POINTS)) >= 200


@pytest.mark.filterwarnings("ignore:the progress function failed:RuntimeWarning")
@pytest.mark.parametrize("late", [False, True], ids=["before", "behind"])
def test_a_fault_anywhere_costs_no_page_and_no_token_that_was_kept(searched, late):
    picked = sites(searched.calls, POINTS)[late::2]
    for index, site in enumerate(picked):
        error = ERRORS[index % len(ERRORS)]()
        searched.faults.arm(site, error, late=late)
        results = raised = None
        try:
            results = searched.run()
        except BaseException as caught:
            raised = caught
        assert raised in (None, error), site
        assert searched.faults.hit, site
        if results is not None:
            searched.check(results)
            for result in results:
                assert result.error in (None, error), (site, error)
                assert (result.error is None) == (result.stop_reason not in ("error", "kv_full"))
        searched.check_engine(wholly=index % 20 == 0)


@pytest.mark.parametrize("step", ["fdopen", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_a_fault_in_writing_leaves_the_old_file_and_no_other(
    searched, tmp_path, monkeypatch, step, error
):
    target = tmp_path / "tree.json"
    searched.want[0].save(target)
    before = target.read_bytes()
    faults = Faults()
    monkeypatch.setattr(os, step, faults.wrapped(step, getattr(os, step)))
    faults.arm((step, 0), error)
    with pytest.raises(type(error)):
        searched.want[1].save(target)
    assert faults.hit
    assert target.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["tree.json"]
    searched.want[1].save(target)
    assert target.read_bytes() != before
