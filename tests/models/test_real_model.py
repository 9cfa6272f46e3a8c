"""SmolLM2-135M-Instruct, as anybody has it: a GGUF file of 4 and 8 bits.

Its scores, its greedy reply, chats, evictions, and what is made of them: comparison, data, pages.
"""

import contextlib
import json

import pytest
import torch

from marco_fast import Engine, SearchConfig, solve
from marco_fast.cli import main
from marco_fast.comparison.compare import compare
from marco_fast.comparison.page import write_report
from marco_fast.data.filters import Limits
from marco_fast.data.generate import generate_data
from marco_fast.data.questions_file import read_questions
from marco_fast.engine.gguf import model as loading
from marco_fast.engine.native_runner import NativeRunner
from marco_fast.ops.backends import built
from tests.support.models import PlainForward
from tests.support.real_model import real_model

FRANCE = "What is the capital of France?"
SEARCH = SearchConfig(expansions=4, parallel=4, step_tokens=8, rollout_tokens=24, seed=1)
GREEDY = SearchConfig(expansions=1, children=1, step_tokens=48, rollout_tokens=0, temperature=0.0)
TOKENS = 256  # of KV, for all branches: a long prompt leaves too few for all of them
LONG = "Here are some words: " + ", ".join(f"word {each}" for each in range(20)) + ". "


@pytest.fixture(scope="module")
def engine():
    with Engine.from_pretrained(real_model(), kv_tokens=TOKENS, max_branches=8) as engine:
        yield engine


@pytest.fixture(scope="module")
def plain():
    """transformers' model of the numbers that the file's blocks stand for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "quantizes", lambda: False)
        model, _ = loading.load_gguf(real_model(), torch.device("cpu"), torch.float32)
    return PlainForward(model)


@pytest.fixture(scope="module")
def result(engine):
    return solve(FRANCE, engine, SEARCH)


def test_every_score_of_a_tree_is_that_of_a_plain_forward(engine, plain, result):
    assert isinstance(engine.runner, NativeRunner) or not built()
    assert plain.check(result, 1e-4) > 30


def test_the_reply_to_a_simple_question_is_finished_and_right(result):
    assert result.finished
    assert "Paris" in result.answer
    assert "<|im_" not in result.text
    assert result.stats.finished_paths > 0


def test_greedy_decoding_is_that_of_generate(engine, plain):
    result = solve(FRANCE, engine, GREEDY)
    tree = result.to_dict()
    ids = torch.tensor([tree["prompt_token_ids"]])
    model = plain.model
    with torch.inference_mode():
        whole = model.generate(ids, do_sample=False, max_new_tokens=48, pad_token_id=2)
    assert tree["nodes"][-1]["token_ids"] == whole[0, ids.shape[1] :].tolist()
    assert result.finished


def test_a_chat_of_several_turns_is_its_template_and_its_history(engine, plain):
    chat = [
        {"role": "system", "content": "You answer in few words."},
        {"role": "user", "content": "My name is Anna. I live in Rome."},
        {"role": "assistant", "content": "Hello Anna! <|im_end|> is not the end."},
        {"role": "user", "content": "What is my name?"},
    ]
    result = solve(chat, engine, GREEDY)
    ids = result.to_dict()["prompt_token_ids"]
    text = engine.tokenizer.decode(ids)
    assert text == engine.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=False
    )
    assert ids.count(2) == 4  # what a user typed ends nothing
    assert result.answer
    assert plain.check(result, 1e-4)


def test_a_long_prompt_evicts_and_changes_no_score(engine, plain, monkeypatch):
    evicted = []
    evict = type(engine.cache).evict

    def counted(cache, node):
        evicted.append(node)
        return evict(cache, node)

    monkeypatch.setattr(type(engine.cache), "evict", counted)
    config = SearchConfig(expansions=6, parallel=3, step_tokens=16, rollout_tokens=16, seed=2)
    result = solve(LONG + "Tell me a story about one of them.", engine, config)
    assert len(result.to_dict()["prompt_token_ids"]) > TOKENS // 2
    assert evicted
    assert plain.check(result, 1e-4) > 60


def test_it_is_compared_with_other_models(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "from_pretrained", lambda *_, **__: contextlib.nullcontext(engine))
    config = SearchConfig(expansions=2, parallel=2, rollout_tokens=24)
    made = compare(["SmolLM2", "a second time"], config, count=1, tests=("facts",))
    one, two = (made.answers[name]["facts"][0] for name in made.models)
    assert one.text
    assert one.text == two.text
    write_report(made, tmp_path / "report.html")
    assert "SmolLM2" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_data_is_made_of_its_replies(engine, tmp_path):
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"id": "1", "question": FRANCE}) + "\n")
    summary = generate_data(
        read_questions(asked, engine), tmp_path / "data.jsonl", engine, SEARCH,
        limits=Limits(min_tokens=1, min_agreement=0.0, min_confidence=0.0),
    )  # fmt: skip
    assert summary.kept == 1
    (line,) = (tmp_path / "data.jsonl").read_text(encoding="utf-8").splitlines()
    assert "Paris" in line
    assert "<|im_end|>" not in json.loads(line)["messages"][-1]["content"]


def test_the_command_line_answers_and_shows_the_tree(tmp_path, capsys):
    saved, page = str(tmp_path / "tree.json"), tmp_path / "tree.html"
    options = ["--expansions", "2", "--rollout-tokens", "24", "--kv-tokens", "512", "--quiet"]
    assert main(["solve", FRANCE, "--model", str(real_model()), *options, "--save", saved]) == 0
    assert "Paris" in capsys.readouterr().out
    assert main(["tree", saved, "--html", str(page)]) == 0
    assert "Paris" in page.read_text(encoding="utf-8")
