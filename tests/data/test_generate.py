"""A whole run of generate_data: every question once, in order, in a file of its own."""

import warnings

import pytest

from marco_fast.data import journal as data_journal
from marco_fast.data.filters import FILTERS, Limits
from marco_fast.data.generate import check_output, default_batch, journal_of
from marco_fast.data.questions_file import read_questions
from marco_fast.search.config import SearchConfig
from marco_fast.search.marco import REFLECTION
from tests.support.data_runs import (
    ROOT,
    FakeEngine,
    fake_solve,
    make,
    records,
    reply,
    searched,
    write_lines,
)


def test_every_question_once_and_in_order(solve, source, tmp_path):
    seen = []
    summary = make(source, tmp_path / "out", progress=seen.append)
    assert [each["id"] for each in records(tmp_path / "out")] == [str(i) for i in range(1, 41)]
    assert summary.complete
    assert summary.to_dict() | {"seconds": 0} == {
        "questions": 40, "bad_lines": 0, "done": 40, "kept": 40, "resumed": 0, "tokens": 80,
        "refused": dict.fromkeys(FILTERS, 0), "seconds": 0, "complete": True,
        "interrupted": False, "error": None,
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"q.jsonl", "out"}
    assert [each.done for each in seen] == sorted(each.done for each in seen)
    assert seen[-1][:4] == (40, 40, 40, 40)


def test_the_batches_are_those_of_the_file(solve, source, tmp_path):
    sizes = []

    def counted(chats, *arguments, **options):
        sizes.append(len(chats))
        return fake_solve(chats, *arguments, **options)

    solve(counted)
    make(source, tmp_path / "out", batch=None, config=SearchConfig(parallel=3))
    assert sizes == [2] * 20  # 4 branches, 3 of a question
    assert default_batch(FakeEngine(), SearchConfig(parallel=4)) == 1


def test_hostile_text_survives_in_one_line_each(solve, tmp_path):
    text = '</Output> "quotes" \\ \n\r\n\t\x00\x85\u2028\u2029 🙂 <|im_end|> {"id": "1"}'
    solve(
        lambda chats, *_, **__: [
            searched(c, [(reply("🙂\u2028\n3", text[9:30]), 1)]) for c in chats
        ]
    )
    source = write_lines(tmp_path / "q.jsonl", [{"question": text}, {"question": text, "id": text}])
    make(source, tmp_path / "out")
    written = (tmp_path / "out").read_text()
    assert len(written.splitlines()) == written.count("\n") == 2
    first, second = records(tmp_path / "out")
    assert first["messages"][0]["content"] == second["id"] == text
    assert first["output"] == "🙂\u2028\n3"
    assert "🙂" in written


def test_an_output_that_exists_is_refused_before_the_search(solve, source, tmp_path):
    out = tmp_path / "out"
    out.write_text("mine")
    solve(lambda *_, **__: pytest.fail("searched"))
    with pytest.raises(ValueError, match=r"that does not exist yet.*--restart"):
        make(source, out)
    assert out.read_text() == "mine"
    assert not journal_of(out).exists()
    with pytest.raises(ValueError, match="expected a file as output"):
        check_output(tmp_path, restart=True)
    solve(fake_solve)
    assert make(source, out, restart=True).kept == 40


def test_a_run_that_keeps_nothing_says_why_at_once_and_writes_nothing(solve, source, tmp_path):
    said, done = [], []

    def watched(now):
        done.append(now.done)

    solve(lambda chats, *_, **__: [searched(chat, [("Yes.", 0.9)]) for chat in chats])
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: said.append((str(message), done[-1]))
        warnings.simplefilter("always")
        summary = make(source, tmp_path / "out", limits=Limits(min_tokens=5), progress=watched)
    ((text, when),) = said
    assert when == 3  # the first batch of 40 questions
    assert "refused: 3 by the filter 'length' (too short or too long: see --min-tokens" in text
    assert (summary.done, summary.kept, summary.complete) == (40, 0, False)
    assert not (tmp_path / "out").exists()
    solve(lambda *_, **__: pytest.fail("searched again"))
    assert make(source, tmp_path / "out", limits=Limits()).kept == 40
    assert len(records(tmp_path / "out")) == 40


def test_a_run_that_keeps_something_says_nothing(solve, source, tmp_path, recwarn):
    replies = iter([[("no", 0.1)]] + [[("No.", 0.9)]] * 99)
    solve(lambda chats, *_, **__: [searched(chat, next(replies)) for chat in chats])
    assert make(source, tmp_path / "out", limits=Limits()).kept == 39
    assert not recwarn.list


def test_a_run_that_just_finished_is_not_made_again(solve, source, tmp_path, monkeypatch):
    """The output comes between the look at it and the lock."""
    out = tmp_path / "out"
    real = data_journal._lock

    def late(path):
        out.write_text("theirs")
        return real(path)

    monkeypatch.setattr(data_journal, "_lock", late)
    with pytest.raises(ValueError, match="that does not exist yet"):
        make(source, out)
    assert out.read_text() == "theirs"
    assert not journal_of(out).exists()


@pytest.mark.parametrize("batch", [0, -2])
def test_a_batch_has_a_question(batch, source, tmp_path):
    with pytest.raises(ValueError, match="expected a batch of at least 1"):
        make(source, tmp_path / "out", batch=batch)


@pytest.fixture(scope="module")
def nano():
    from marco_fast.engine.engine import Engine

    with Engine.from_pretrained("nano-marco", max_branches=8) as engine:
        yield engine


def test_a_real_record_is_the_searchs(nano, real_source, tmp_path):
    from marco_fast.forest.solve import solve

    config = SearchConfig(expansions=6, parallel=4, reflect=True, seed=5)
    make(real_source, tmp_path / "out", engine=nano, config=config, batch=2, system="Be kind.")
    record = records(tmp_path / "out")[0]
    begin = (int(record["id"]) - 1) // 2 * 2
    asked = read_questions(real_source, nano, system="Be kind.").asked[begin : begin + 2]
    results = solve([each.messages for each in asked], nano, config)
    (result,) = [r for r, each in zip(results, asked, strict=True) if each.id == record["id"]]
    assert record["messages"][:-1] == result.messages
    assert [each["role"] for each in record["messages"]] == ["system", "user", "assistant"]
    text = record["messages"][-1]["content"]
    assert result.text.startswith(text)
    assert text.endswith("</Output>")
    assert REFLECTION.strip() in text
    assert (record["thought"], record["output"]) == (result.thought, result.answer)
    assert record["confidence"] == result.confidence
    assert record["tree"]["nodes"] == len(result.tree)
    assert record["model"] == "nano-marco"


def test_trl_trains_on_the_file_as_it_is(solve, tmp_path):
    """One step of nano-marco; only the replies count, with a template that marks them."""
    trl = pytest.importorskip("trl")
    import torch
    import transformers
    from datasets import load_dataset

    lines = [{"question": f"What is {i} + 1?", "id": i if i % 2 else f"q{i}"} for i in range(6)]
    out = tmp_path / "out"
    make(write_lines(tmp_path / "q.jsonl", lines), out, system="Be kind.")
    data = load_dataset("json", data_files=str(out), split="train", cache_dir=str(tmp_path / "c"))
    assert data.to_list() == records(out)
    folder = ROOT / "marco_fast" / "models" / "nano-marco"
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = model.model.embed_tokens.weight.clone()
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "t"), max_steps=1, per_device_train_batch_size=2,
        assistant_only_loss=True, bf16=False, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=model, args=arguments, train_dataset=data, processing_class=tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    for labels in batch["labels"]:
        text = tokenizer.decode(labels[labels != -100])
        assert text in {each["messages"][-1]["content"] + "<|im_end|>" for each in records(out)}
    assert trainer.train().training_loss > 0
    assert not torch.equal(model.model.embed_tokens.weight, before)
