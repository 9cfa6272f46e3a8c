"""Replies of every kind of model in solve(): what is answer and thought, and what is finished."""

import shutil

import pytest
import transformers

from marco_fast import Engine
from marco_fast.search.marco import REFLECTION
from tests.support.models import CHAT
from tests.support.scripts import EOS, answered

OPENS = CHAT.replace("assistant\n", "assistant\n<think>\n")
HYBRID = CHAT.replace(
    "assistant\n",
    "assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}",
)
TAGS = "{# write your <Thought>, then your <Output> #}" + CHAT
LONG = "".join(f" word{n}" for n in range(300))  # longer than the context


@pytest.fixture(scope="module")
def tiny(folders):
    with Engine.from_pretrained(folders["qwen2"], kv_tokens=4096) as engine:
        yield engine


def told(result) -> tuple:
    assert result.tree.end[result.answer_node] or not result.finished
    return (result.answer, result.thought, result.finished, result.tree.end[result.answer_node])


# template, reply, answer, thought, finished, end
ROWS = [
    (CHAT, f"Paris.{EOS}", "Paris.", "", True, "eos"),
    (CHAT, f" \n{EOS}", "", "", False, "eos"),
    (CHAT, LONG, None, "", False, "context"),
    (CHAT, f"<think>\na\n</think>\n\nb{EOS}", "b", "a", True, "eos"),
    (CHAT, f"<think>\na{EOS}", "<think>\na", "a", False, "eos"),
    (CHAT, f"<think>a</think> \n{EOS}", "<think>a</think>", "a", False, "eos"),
    (CHAT, "<Thought>a</Thought><Output>b</Output> and more", "b", "a", True, "reply"),
    (CHAT, f"<Thought>a</Thought><Output>b{EOS}", "b", "a", True, "eos"),
    (CHAT, f"Well.\n<Thought>a</Thought>\n<Output>b</Output>{EOS}", "b", "a", True, "eos"),
    (CHAT, f"Write `<Output>` or `</think>`.{EOS}", "Write `<Output>` or `</think>`.", "", True, "eos"),
    (TAGS, f"Well. <Thought>a</Thought><Output>b</Output>{EOS}", "b", "a", True, "reply"),
    (TAGS, f"b{EOS}", "b", "", True, "eos"),
    (TAGS, f"<Thought>a{EOS}", "<Thought>a", "a", False, "eos"),
    (TAGS, f"<Thought>a</Thought>\nb{EOS}", "b", "a", True, "eos"),
    (OPENS, f"a\n</think>\nb{EOS}", "b", "a", True, "eos"),
    (OPENS, f"a{EOS}", "a", "a", False, "eos"),
    (OPENS, f"<think>a</think>b</think>{EOS}", "b", "a", True, "eos"),
    (OPENS, f"a</think>b</think>c{EOS}", "c", "a</think>b", True, "eos"),
    (HYBRID, f"<think>a</think>b{EOS}", "b", "a", True, "eos"),
    (HYBRID, f"b{EOS}", "b", "", True, "eos"),
    (None, "<Thought>a</Thought><Output>b</Output> and more", "b", "a", True, "reply"),
    (None, f"b{EOS}", "b", "", True, "eos"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:the model .* has no chat template")
@pytest.mark.parametrize(("template", "reply", "answer", "thought", "finished", "end"), ROWS)
def test_a_reply_is_cut_as_its_model_writes_it(
    tiny, monkeypatch, template, reply, answer, thought, finished, end
):
    monkeypatch.setattr(tiny.tokenizer, "chat_template", template)
    result = answered(tiny, [reply])
    if answer is None:
        answer = result.text.strip()
        assert answer
    assert told(result) == (answer, thought, finished, end)
    assert result.tree.finished == [False, finished]
    assert bool(result.answers) == (result.support > 0) == (result.final != "") == finished
    assert result.confidence == 0.75


def test_the_empty_thought_of_a_prompt_makes_the_reply_plain(tiny, monkeypatch):
    monkeypatch.setattr(tiny.tokenizer, "chat_template", HYBRID)
    off = {"enable_thinking": False}
    for reply in ("auto", "think"):
        result = answered(tiny, [f"b{EOS}"], chat_template_kwargs=off, reply=reply)
        assert told(result) == ("b", "", True, "eos")
        assert tiny.tokenizer.decode(result.prompt_token_ids).endswith("<think>\n\n</think>\n\n")
    assert not answered(tiny, [f"b{EOS}"], reply="think").finished


def test_what_a_user_asks_shows_nothing_of_the_model(tiny, monkeypatch):
    monkeypatch.setattr("tests.support.scripts.QUESTION", "What is <Output> for in <think>")
    assert told(answered(tiny, [f"b{EOS}"])) == ("b", "", True, "eos")


def test_a_system_prompt_that_asks_for_the_tags_shows_them(tiny):
    reply = "Well, <Thought>a</Thought><Output>b</Output> and more"
    assert told(answered(tiny, [reply], system="marco-o1")) == ("b", "a", True, "reply")
    assert not answered(tiny, [reply]).finished


@pytest.mark.parametrize(
    ("reply", "answer", "thought"),
    [
        ("marco", "b", "a"),
        ("think", "a <Thought>a</Thought><Output>b</Output>", ""),
        ("plain", None, ""),
    ],
)
def test_a_format_that_is_named_holds_whatever_the_prompt_shows(tiny, reply, answer, thought):
    text = "</think>a <Thought>a</Thought><Output>b</Output>"
    result = answered(tiny, [text + EOS], reply=reply)
    assert told(result)[:3] == (answer or text, thought, True)


def test_the_tags_may_be_special_tokens(folders, tmp_path):
    shutil.copytree(folders["qwen2"], tmp_path / "special")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "special")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    tokenizer.chat_template = OPENS
    tokenizer.save_pretrained(tmp_path / "special")
    with Engine.from_pretrained(tmp_path / "special", kv_tokens=512) as engine:
        assert len(engine.tokenizer("</think>", add_special_tokens=False)["input_ids"]) == 1
        assert told(answered(engine, [f"a</think>b{EOS}"])) == ("b", "a", True, "eos")
        assert told(answered(engine, [f"a{EOS}"])) == ("a", "a", False, "eos")
        result = answered(engine, [f"a</think>b{EOS}"], reflect=True)
    assert result.text.count(REFLECTION) == 1
    assert result.text.startswith(f"a{REFLECTION}")


def test_a_path_that_was_cut_off_never_answers_while_another_finished(tiny):
    result = answered(tiny, [LONG, f"b{EOS}", "c" * 200], confidences=[1.0, 0.25, 1.0])
    assert told(result) == ("b", "", True, "eos")
    assert sorted(result.tree.end[1:]) == ["context", "eos", "loop"]
    assert [n for n in range(4) if result.tree.finished[n]] == [result.answer_node]
    assert [group.answer for group in result.answers] == ["b"]
    assert result.stats.finished_paths == 1


def test_of_unfinished_paths_the_best_is_shown_and_loops_come_last(tiny):
    texts = [f"{LONG}", f"x{LONG}", "c" * 200, EOS]
    result = answered(tiny, texts, confidences=[0.25, 0.5, 1.0, 1.0])
    assert result.text.startswith("x word0")
    assert (result.finished, result.answer, result.final) == (False, result.text.strip(), "")
    assert (result.confidence, result.support, result.answers) == (0.5, 0.0, [])
    assert answered(tiny, ["c" * 200, EOS]).answer == "c" * 64
    cut = answered(tiny, [f"<think>a</think>b{LONG}"])
    assert (cut.thought, cut.answer.startswith("b word0"), cut.finished) == ("a", True, False)


def test_a_rollout_that_a_limit_cut_off_is_unfinished_and_can_be_expanded(tiny):
    result = answered(tiny, ["one two three"], step_tokens=4, rollout_tokens=8)
    assert result.tree.end == [None] * len(result.tree)
    assert (result.finished, bool(result.answer)) == (False, True)
