"""solve(), end to end: every number against a plain forward, determinism, budgets, errors."""

import dataclasses
import json
import os
import signal
import stat
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import marco_fast
import marco_fast.forest.forest
from marco_fast import Engine, KVCacheFull, ModelError, SearchConfig, solve
from marco_fast.engine.branches import Branch
from marco_fast.engine.scheduler import Scheduler
from marco_fast.forest.result import Progress
from marco_fast.ops import reference
from marco_fast.search.marco import MARCO_PROMPT, REFLECTION, as_messages
from tests.support.models import CONFIGS, PlainForward, save_model

# Two float32 programs of one model: sums in another order, 2 to 6 layers, logits of about +-30.
ATOL = 2e-4
NANO = Path(marco_fast.__file__).parent / "models" / "nano-marco"
QUESTION = "How many times does the letter r occur in strawberry?"
SMALL = SearchConfig(expansions=10, step_tokens=8, rollout_tokens=24, parallel=6, temperature=1.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: save_model(kind, tmp_path_factory.mktemp(kind)) for kind in CONFIGS}


@pytest.fixture(scope="module")
def plain(folders):
    made: dict[str, PlainForward] = {}

    def get(name: str) -> PlainForward:
        if name not in made:
            made[name] = PlainForward(folders.get(name, NANO))
        return made[name]

    return get


@pytest.fixture(scope="module")
def nano():
    with Engine.from_pretrained("nano-marco") as engine:
        yield engine


@pytest.fixture
def tiny(folders):
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=4096) as engine:
        yield engine


def same_tree(a, b) -> bool:
    return a.tree.rows() == b.tree.rows()


@pytest.mark.parametrize("action", ["step", "mini-step"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_number_equals_a_plain_forward(folders, plain, kind, action):
    config = dataclasses.replace(SMALL, action=action, max_step_tokens=12)
    with Engine.from_pretrained(folders[kind]) as engine:
        result = solve(QUESTION, engine, config)
        assert engine.cache.used_pages == 0
    assert result.stop_reason == "expansions"
    assert plain(kind).check(result, ATOL) > 150


@pytest.mark.parametrize("kind", ["qwen2", "llama3"])
def test_every_token_is_the_draw_of_its_nodes_seed_and_its_position(folders, plain, kind):
    """The definition's draws from a plain forward's logits give the tree's tokens."""
    with Engine.from_pretrained(folders[kind]) as engine:
        result = solve(QUESTION, engine, SMALL)
    tree, config, prompt = result.tree, result.config, result.prompt_token_ids
    drawn = other = 0
    for node in range(1, len(tree)):
        path = prompt + tree.path_token_ids(node)
        count = len(tree.token_ids[node])
        first = len(path) - count
        rows = plain(kind).logprobs(path)[first - 1 : -1]
        positions = torch.arange(first, len(path))
        options = {"temperature": config.temperature, "top_p": config.top_p, "positions": positions}
        for seed, is_its_own in ((tree.seed[node], True), (tree.seed[node] + 1, False)):
            seeds = torch.full((count,), seed)
            want = reference.sample_confidence(rows, seeds=seeds, **options).token_ids
            same = sum(a == b for a, b in zip(want.tolist(), tree.token_ids[node], strict=True))
            drawn += same if is_its_own else 0
            other += 0 if is_its_own else same
    total = sum(map(len, tree.token_ids))
    assert drawn >= 0.99 * total  # a draw within float32 rounding of a boundary may fall beside it
    assert other < 0.5 * total


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("action", ["step", "mini-step"])
def test_nano_marcos_numbers_equal_a_plain_forward(nano, plain, action, reflect):
    config = SearchConfig(
        expansions=12, action=action, reflect=reflect, step_tokens=16, max_step_tokens=48
    )
    result = solve(QUESTION, nano, config)
    assert plain("nano-marco").check(result, ATOL) > 200
    assert nano.cache.used_pages == 0
    assert result.answer
    assert 0 < result.confidence <= 1
    assert result.thought


def test_the_same_call_gives_the_same_tree_and_another_seed_another(tiny):
    config = dataclasses.replace(SMALL, seed=3)
    first, second = (solve(QUESTION, tiny, config) for _ in range(2))
    assert same_tree(first, second)
    assert not same_tree(first, solve(QUESTION, tiny, dataclasses.replace(config, seed=4)))


def pages_of(result) -> int:
    """Pages that hold the prompt and every node that others may go on from."""
    tree = result.tree
    nodes = sum(
        -(-len(t) // 16) for t, end in zip(tree.token_ids, tree.terminal, strict=True) if not end
    )
    return -(-len(result.prompt_token_ids) // 16) + nodes


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_quarter_of_the_pages_only_makes_it_slower(folders, plain, kind):
    config = dataclasses.replace(SMALL, expansions=40, rollout_tokens=40, c_uct=5.0)
    with Engine.from_pretrained(folders[kind]) as engine:
        pages = pages_of(solve(QUESTION, engine, config))
    with Engine.from_pretrained(folders[kind], kv_tokens=16 * (pages // 4)) as engine:
        evictions = count_calls(engine.cache, "evict")
        result = solve(QUESTION, engine, config)
        assert engine.cache.used_pages == 0
        assert len(evictions) > 10
    assert result.stop_reason == "expansions"
    assert result.stats.expansions == 40
    assert plain(kind).check(result, ATOL) > 500


@pytest.mark.parametrize("kind", CONFIGS)
def test_with_one_branch_at_a_time_a_quarter_of_the_pages_gives_the_same_tree(folders, kind):
    config = dataclasses.replace(SMALL, expansions=30, rollout_tokens=40, parallel=1, c_uct=5.0)
    with Engine.from_pretrained(folders[kind]) as engine:
        roomy = solve(QUESTION, engine, config)
    with Engine.from_pretrained(folders[kind], kv_tokens=16 * (pages_of(roomy) // 4)) as engine:
        evictions = count_calls(engine.cache, "evict")
        tight = solve(QUESTION, engine, config)
        assert len(evictions) > 10
    assert same_tree(roomy, tight)


def count_calls(target, name: str) -> list[tuple]:
    """Record the calls of a method from now on."""
    calls: list[tuple] = []
    method = getattr(target, name)

    def recorded(*args):
        calls.append(args)
        return method(*args)

    setattr(target, name, recorded)
    return calls


def test_branches_are_preempted_when_nothing_can_be_evicted(folders, plain, monkeypatch):
    """Six branches whose own segments alone need more pages than there are."""
    waited = []
    preempt = Scheduler._preempt

    def recorded(scheduler: Scheduler, branch: Branch) -> None:
        waited.append(branch)
        preempt(scheduler, branch)

    monkeypatch.setattr(Scheduler, "_preempt", recorded)
    config = dataclasses.replace(SMALL, step_tokens=64, rollout_tokens=0, expansions=8, children=8)
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=16 * 14) as engine:
        result = solve(QUESTION, engine, config)
        assert engine.cache.used_pages == 0
    assert result.stats.expansions == 8
    assert waited
    assert plain("qwen2").check(result, ATOL) == 8 * 64


def test_a_full_cache_is_not_searched_for_every_page(monkeypatch):
    """The segments are looked through once for many evictions, not once for each."""
    with Engine.from_pretrained("nano-marco", kv_tokens=8192) as engine:
        looked = count_calls(engine.cache, "is_resident")
        config = SearchConfig(expansions=400, step_tokens=4, rollout_tokens=64, seed=2)
        result = solve(QUESTION, engine, config)
    segments = len(result.tree)
    evictions = segments - 512  # each node has a page at least
    assert evictions > 500
    assert len(looked) < 300 * segments


def test_too_few_pages_for_one_branch_is_kv_cache_full(folders):
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=32) as engine:
        engine.context = 512
        with pytest.raises(KVCacheFull, match=r"expected at least \d+ free KV pages, got \d+"):
            solve(QUESTION, engine, SMALL)
        assert engine.cache.used_pages == 0


def test_running_out_in_mid_search_returns_the_best_so_far(folders, plain):
    """The prompt and a start fit, one path to its end does not."""
    config = dataclasses.replace(SMALL, step_tokens=8, rollout_tokens=100, parallel=1)
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=512) as engine:
        prompt = len(engine.prompt_token_ids(as_messages(QUESTION), ""))
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=16 * (prompt // 16 + 6)) as engine:
        engine.context = 512
        result = solve(QUESTION, engine, config)
        assert engine.cache.used_pages == 0
    assert result.stop_reason == "kv_full"
    assert isinstance(result.error, KVCacheFull)
    assert result.error.total == prompt // 16 + 6
    assert plain("qwen2").check(result, ATOL) > 16


def test_the_end_of_the_context_is_terminal(folders, plain):
    with Engine.from_pretrained(folders["qwen2"]) as engine:
        prompt = len(engine.prompt_token_ids(as_messages(QUESTION), ""))
        engine.context = prompt + 20
        result = solve(QUESTION, engine, dataclasses.replace(SMALL, rollout_tokens=100))
    lengths = {len(result.tree.path_token_ids(n)) for n, t in enumerate(result.tree.terminal) if t}
    assert max(lengths) == 20
    assert plain("qwen2").check(result, ATOL) > 100


def test_a_list_shares_batches_and_prompt_and_every_number_is_right(nano, plain):
    questions = [
        QUESTION,
        "How many times does the letter e occur in cheese?",
        "How many times does the letter o occur in moon?",
        QUESTION,
    ]
    config = SearchConfig(expansions=8, step_tokens=16, parallel=5)
    results = solve(questions, nano, config)
    assert [each.question for each in results] == questions
    for result in results:
        assert result.stats.expansions == 8
        assert plain("nano-marco").check(result, ATOL) > 50
    assert nano.cache.used_pages == 0
    assert solve([], nano, config) == []
    again = solve(questions, nano, config)
    assert all(same_tree(a, b) for a, b in zip(results, again, strict=True))


def test_a_prefix_that_all_prompts_share_is_one_node(tiny, plain):
    preamble = "Read this first: answer in as few words as you can. "
    questions = [preamble + each for each in ("Why?", "Who?", "When was that?", "")]
    roots = count_calls(tiny.cache, "add_root")
    results = solve(questions, tiny, dataclasses.replace(SMALL, expansions=4))
    assert len(roots) == 1
    for result in results:
        assert plain("qwen2").check(result, ATOL) > 30
    assert tiny.cache.used_pages == 0


def test_more_questions_than_branches(tiny, plain):
    tiny.max_branches = 3
    results = solve(
        [f"question {i}" for i in range(9)], tiny, dataclasses.replace(SMALL, expansions=3)
    )
    for result in results:
        assert result.stop_reason == "expansions"
        assert plain("qwen2").check(result, ATOL) > 20


@pytest.mark.parametrize("step_tokens", [3, 4, 5, 32])
def test_reflection_takes_the_end_of_the_thought_back_once(nano, plain, step_tokens):
    """Also where a mini-step would end inside the tag."""
    config = SearchConfig(expansions=6, reflect=True, step_tokens=step_tokens)
    result = solve(QUESTION, nano, config)
    assert plain("nano-marco").check(result, ATOL) > 100
    tree = result.tree
    ends = [node for node, done in enumerate(tree.finished) if done]
    assert ends
    phrase = nano.tokenizer(REFLECTION, add_special_tokens=False)["input_ids"]
    for end in ends:
        text = nano.tokenizer.decode(tree.path_token_ids(end))
        assert text.count(REFLECTION.strip()) == 1
        assert text.count("</Thought>") == 1
        assert text.index(REFLECTION.strip()) < text.index("</Thought>")
        assert not text.partition(REFLECTION)[0].endswith(("<", "</", "</T", "</Th", "</Thought"))
        forced = sum(lp is None for node in tree.path(end) for lp in tree.logprobs[node])
        assert forced == len(phrase)


def test_no_reflection_that_the_context_would_cut_off(nano, monkeypatch):
    """It needs room for the phrase and for as long a thought again, token for token."""
    config = SearchConfig(expansions=1, temperature=0.0, reflect=True, rollout_tokens=900)
    plainly = solve(QUESTION, nano, dataclasses.replace(config, reflect=False))
    end = plainly.answer_node
    pieces = [nano.token_bytes[token] for token in plainly.tree.path_token_ids(end)]
    thought = next(n for n in range(len(pieces)) if b"</Thought>" in b"".join(pieces[: n + 1])) + 1
    phrase = len(nano.tokenizer(REFLECTION, add_special_tokens=False)["input_ids"])
    needed = len(plainly.prompt_token_ids) + thought + phrase + thought
    for context, reflects in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(nano, "context", context)
        result = solve(QUESTION, nano, config)
        tokens = result.tree.path_token_ids(result.answer_node)
        assert (REFLECTION.strip() in nano.tokenizer.decode(tokens)) == reflects
        if not reflects:
            assert tokens == plainly.tree.path_token_ids(end)
            assert result.answer == plainly.answer != ""


def test_steps_end_at_blank_lines(nano):
    result = solve(QUESTION, nano, SearchConfig(expansions=12, action="step"))
    tree = result.tree
    cut = [n for n in range(1, len(tree)) if tree.children[n] and not tree.terminal[n]]
    assert len(cut) >= 3
    for node in cut:
        text = nano.tokenizer.decode(tree.token_ids[node])
        assert "\n\n" in text.lstrip("\n")
        assert "\n\n" not in text.lstrip("\n").rstrip("\n")


def test_mini_steps_have_their_length_unless_the_path_ends(tiny):
    result = solve("q", tiny, dataclasses.replace(SMALL, rollout_tokens=20))
    tree = result.tree
    for node in range(1, len(tree)):
        assert len(tree.token_ids[node]) <= 8
        if tree.children[node]:
            assert len(tree.token_ids[node]) == 8
    ends = [n for n in range(1, len(tree)) if not tree.children[n] and not tree.terminal[n]]
    assert {len(tree.token_ids[n]) for n in ends} <= {4, 8}  # 8 + 8 + 8 + 4, or not rolled out


def test_without_rollouts_a_branch_is_one_action(tiny, plain):
    result = solve("q", tiny, dataclasses.replace(SMALL, rollout_tokens=0, expansions=30))
    assert len(result.tree) == 31
    assert result.stats.rollout_nodes == 0
    assert result.stats.kv_tokens_path > result.stats.kv_tokens_unique
    plain("qwen2").check(result, ATOL)


def test_temperature_zero_is_the_most_likely_token(nano, plain):
    result = solve(QUESTION, nano, SearchConfig(expansions=1, temperature=0.0, step_tokens=400))
    (node,) = range(1, len(result.tree))
    tokens = result.tree.token_ids[node]
    logprobs = plain("nano-marco").logprobs(result.prompt_token_ids + tokens)
    greedy = logprobs[len(result.prompt_token_ids) - 1 : -1].argmax(-1)
    assert greedy.tolist() == tokens


@pytest.mark.parametrize(("budget", "value"), [("max_tokens", 100), ("max_seconds", 0.3)])
def test_budgets_end_the_search_with_the_best_so_far(tiny, plain, budget, value):
    config = dataclasses.replace(SMALL, expansions=10**6, **{budget: value})
    result = solve("q", tiny, config)
    assert result.stop_reason == budget.removeprefix("max_")
    assert tiny.cache.used_pages == 0
    assert len(result.tree) > 1
    plain("qwen2").check(result, ATOL)
    if budget == "max_tokens":
        assert 90 < result.stats.tokens <= 100
        assert sum(map(len, result.tree.token_ids)) <= 100


def test_a_tree_whose_paths_all_end_is_exhausted(nano):
    config = SearchConfig(expansions=50, children=2, step_tokens=400, temperature=0.3)
    result = solve(QUESTION, nano, config)
    assert result.stop_reason == "exhausted"
    assert result.stats.expansions == 2


@pytest.fixture
def listening():
    """Ctrl-C as at a terminal: a process that a script put into the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_returns_the_best_so_far_and_the_handler_is_put_back(nano, plain, listening):
    sent = []

    def interrupt(progress: Progress) -> None:
        if progress.tokens > 300 and not sent:
            sent.append(progress)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    result = solve(
        QUESTION, nano, SearchConfig(expansions=10**5, step_tokens=8), progress=interrupt
    )
    assert result.stop_reason == "interrupted"
    assert signal.getsignal(signal.SIGINT) is before
    assert nano.cache.used_pages == 0
    assert plain("nano-marco").check(result, ATOL) > 200
    assert solve(QUESTION, nano, SearchConfig(expansions=2)).answer  # the engine still works


@pytest.mark.parametrize("step", [0, 1, 7, 40])
def test_an_exception_in_the_model_ends_the_search_with_the_tree_intact(tiny, plain, step):
    calls, sample = 0, tiny.sample

    def failing(*args, **options):
        nonlocal calls
        calls += 1
        if calls > step:
            raise RuntimeError("the matrix is on fire")
        return sample(*args, **options)

    tiny.sample = failing
    if step == 0:
        with pytest.raises(RuntimeError, match="on fire"):
            solve("q", tiny, SMALL)
    else:
        result = solve("q", tiny, SMALL)
        assert result.stop_reason == "error"
        assert "on fire" in str(result.error)
        assert not any(result.tree.virtual_visits)
        plain("qwen2").check(result, ATOL)
    assert tiny.cache.used_pages == 0
    assert not tiny.lock.locked()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error_not_a_token(tiny, plain, value):
    step, calls = tiny.runner.step, []

    def spoiled(*args, **options):
        hidden = step(*args, **options)
        if len(hidden):
            calls.append(args)
        if len(calls) == 5:
            hidden[0, 7] = value
        return hidden

    tiny.runner.step = spoiled
    result = solve("q", tiny, SMALL)
    assert result.stop_reason == "error"
    assert isinstance(result.error, ModelError)
    assert tiny.cache.used_pages == 0
    plain("qwen2").check(result, ATOL)


def test_no_time_at_all_is_an_empty_answer(tiny):
    result = solve("q", tiny, dataclasses.replace(SMALL, max_seconds=0))
    assert (result.stop_reason, result.answer, result.confidence) == ("seconds", "", 0.0)
    assert len(result.tree) == 1
    assert tiny.cache.used_pages == 0


def test_an_exception_in_the_callback_reaches_the_caller_as_error(tiny):
    def broken(progress: Progress) -> None:
        if progress.tokens:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        solve("q", tiny, SMALL, progress=broken)
    assert tiny.cache.used_pages == 0


def test_a_value_function_decides(nano):
    seen = []

    def longest(tokens, confidences, text) -> float:
        seen.append((len(tokens), len(confidences), text))
        return float(len(tokens))

    result = solve(QUESTION, nano, SearchConfig(expansions=6, value=longest, temperature=1.0))
    assert all(tokens == confidences for tokens, confidences, _ in seen)
    finished = [t for t, _, text in seen if "</Output>" in text]
    assert result.confidence == max(finished)
    assert len(result.tree.path_token_ids(result.answer_node)) == max(finished)


@pytest.mark.parametrize("question", ["", "  \n", None, 7])
def test_an_empty_question_is_refused(tiny, question):
    with pytest.raises(ValueError, match="expected a question with some text"):
        solve([question], tiny)


def test_a_question_longer_than_the_context_is_refused(tiny):
    with pytest.raises(ValueError, match="expected a question of fewer than 512 tokens"):
        solve("word " * 600, tiny)


def test_progress_is_reported_and_ends_with_the_whole(nano):
    seen: list[Progress] = []
    result = solve(QUESTION, nano, SearchConfig(expansions=8, step_tokens=16), progress=seen.append)
    assert seen[-1].expansions == 8
    assert seen[-1].done == 1
    assert seen[-1].answer == result.answer
    assert seen[-1].tokens == result.stats.tokens
    assert [each.tokens for each in seen] == sorted(each.tokens for each in seen)


def test_the_tree_file_is_written_whole_or_not_at_all(tiny, tmp_path, monkeypatch):
    result = solve("q", tiny, SMALL)
    target = tmp_path / "tree.json"
    result.save(target)
    data = json.loads(target.read_text())
    assert data["format"] == "marco-fast-tree"
    assert data["version"] == 1
    assert data["stats"]["expansions"] == 10
    assert data["nodes"][0]["parent"] == -1
    assert len(data["nodes"]) == len(result.tree)
    assert stat.S_IMODE(target.stat().st_mode) & 0o044 == 0o044 & ~current_umask()
    before = target.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        result.save(target)
    assert target.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["tree.json"]
    with pytest.raises(OSError, match="nowhere"):
        result.save(tmp_path / "nowhere" / "tree.json")


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_bfloat16_numbers_are_nearer_to_the_exact_ones_than_a_bfloat16_forward(folders):
    """The decoder rounds what it multiplies; transformers rounds every result besides."""
    with Engine.from_pretrained(folders["qwen2"], dtype="bfloat16") as engine:
        result = solve(QUESTION, engine, SMALL)
    exact = PlainForward(folders["qwen2"], torch.bfloat16)
    exact.model.float()
    rounding = PlainForward(folders["qwen2"], torch.bfloat16)
    path = [*result.prompt_token_ids, *range(50, 80)]
    error = (rounding.logprobs(path) - exact.logprobs(path)).abs().max().item()
    assert exact.check(result, error) > 150


CHAT = [
    {"role": "user", "content": "How many s are in glass?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": QUESTION},
]


def test_a_chat_is_answered_after_all_that_was_said(nano, plain):
    result = solve(CHAT, nano, SMALL)
    text = nano.tokenizer.decode(result.prompt_token_ids)
    assert all(each["content"] in text for each in CHAT)
    assert result.question == QUESTION
    assert result.messages == CHAT == result.to_dict()["messages"]
    assert plain("nano-marco").check(result, ATOL) > 100


def test_what_was_said_before_keys_the_draws(nano):
    alone, after = solve([QUESTION, CHAT], nano, SMALL)
    assert same_tree(alone, solve(CHAT[-1:], nano, SMALL))
    assert same_tree(after, solve(CHAT, nano, SMALL))
    other = [{**CHAT[0], "content": "How many s are in lass?"}, *CHAT[1:]]
    assert after.tree.seed[0] != alone.tree.seed[0] != solve(other, nano, SMALL).tree.seed[0]


def test_a_system_prompt_stands_in_front_of_every_question(nano):
    results = solve([QUESTION, CHAT], nano, SMALL, system="marco-o1")
    for result in results:
        assert result.messages[0] == {"role": "system", "content": MARCO_PROMPT}
        assert MARCO_PROMPT in nano.tokenizer.decode(result.prompt_token_ids)


def test_a_bad_chat_is_refused_before_anything_is_decoded(nano):
    with pytest.raises(ValueError, match="the user's, got 'assistant'"):
        solve([QUESTION, CHAT[:2]], nano, SMALL)
    with pytest.raises(ValueError, match="messages like"):
        solve([{"role": "user"}], nano, SMALL)
    assert nano.cache.used_pages == 0


def test_the_live_text_is_that_of_a_path_being_decoded(nano):
    seen = []
    config = dataclasses.replace(SMALL, expansions=40, rollout_tokens=200)
    reporting = marco_fast.forest.forest.REPORT_SECONDS
    marco_fast.forest.forest.REPORT_SECONDS = 0.0
    try:
        result = solve(QUESTION, nano, config, progress=seen.append)
    finally:
        marco_fast.forest.forest.REPORT_SECONDS = reporting
    live = [each.live for each in seen]
    assert live[-1] == ""
    growing = [b for a, b in pairwise(live) if a and b.startswith(a) and b != a]
    assert len(growing) > 20
    texts = [
        b"".join(nano.token_bytes[i] for i in result.tree.path_token_ids(node)).decode(
            errors="replace"
        )
        for node in range(len(result.tree))
    ]
    assert all(any(text.startswith(each.rstrip("\ufffd")) for text in texts) for each in live)


def test_the_texts_of_the_tree_file_are_those_of_its_tokens(tiny):
    """Also where a character spans tokens, or nodes: the model's tokens are random bytes."""
    config = dataclasses.replace(SMALL, step_tokens=3, temperature=3.0, top_p=1.0)
    result = solve("自动 🍓", tiny, config)
    nodes = result.to_dict()["nodes"]
    for node in nodes:
        assert len(node["texts"]) == len(node["token_ids"])
        path = result.tree.path(node["id"])
        text = "".join(each for at in path for each in nodes[at]["texts"])
        whole = b"".join(tiny.token_bytes[i] for i in result.tree.path_token_ids(node["id"]))
        assert whole.decode(errors="replace").startswith(text)
        assert len(text.encode()) >= len(whole) - 3
    assert result.text == "".join(
        each for at in result.tree.path(result.answer_node) for each in nodes[at]["texts"]
    ) or result.text.endswith("\ufffd")
