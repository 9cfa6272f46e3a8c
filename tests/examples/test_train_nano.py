"""The pieces of the nano models' training: samples, tokenizer, optimizer, schedule, checkpoints."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, Qwen2Config

import marco_fast
from examples.train_nano.network import MODELS, SharedHeadAttention
from examples.train_nano.optimizer import orthogonalise
from examples.train_nano.samples import (
    UNIFORM,
    Mix,
    batches,
    earlier_messages,
    prompt_text,
    read_mix,
    sample,
    samples,
)
from examples.train_nano.tokenizer import extend_tokenizer, train_tokenizer
from examples.train_nano.train import (
    export,
    learning_rate,
    parse,
    save,
    start,
    train_step,
)
from marco_fast.questions.questions import LANGUAGES, TESTS, questions, write_answer, write_output
from marco_fast.search.marco import REFLECTION

FOLDER = Path(marco_fast.__file__).parent / "models" / "nano-marco"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def small_tokenizer() -> Tokenizer:
    return train_tokenizer(400, 400, texts=300)


def tiny_config(model: str, layers: int = 1) -> Qwen2Config | LlamaConfig:
    """A model of the same kind, quick to train."""
    config = MODELS[model]()
    config.num_hidden_layers, config.intermediate_size = layers, 32
    config.layer_types = None
    return config


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("test", TESTS)
def test_pieces_encode_as_the_whole_does(test, language, tokenizer):
    for question in islice(questions(test, 4, "test", language=language), 10):
        prompt = prompt_text(question.text)
        length = len(tokenizer.encode(prompt).ids)
        for mode, reply in (
            ("thought", write_answer(question)),
            ("concise", write_output(question.answer)),
        ):
            ids, flags = sample(tokenizer, question, mode, random.Random(0))
            assert ids == tokenizer.encode(f"{prompt}{reply}<|im_end|>").ids
            assert flags == [False] * length + [True] * (len(ids) - length)


def test_a_slip_and_the_phrase_have_no_loss(tokenizer):
    question = next(questions("facts", 5, "train"))
    ids, flags = sample(tokenizer, question, "slip", random.Random(0))
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert REFLECTION in text
    assert text.count("</Thought>") == 1
    phrase = tokenizer.encode(REFLECTION).ids
    at = next(i for i in range(len(ids)) if ids[i : i + len(phrase)] == phrase)
    assert not any(flags[at : at + len(phrase)])
    assert all(flags[at + len(phrase) :])
    prompt = len(tokenizer.encode(prompt_text(question.text)).ids)
    silent = [i for i in range(prompt, at) if not flags[i]]
    step = tokenizer.decode([ids[i] for i in silent])
    assert step not in question.steps
    assert silent == list(range(silent[0], silent[-1] + 1))


def test_what_stands_before_a_question_has_no_loss(tokenizer):
    before = [("system", "Be brief."), ("user", "1?"), ("assistant", "<Output>\n1\n</Output>")]
    question = next(questions("letters", 1, "train"))
    ids, flags = sample(tokenizer, question, "thought", random.Random(0), before)
    length = len(tokenizer.encode(prompt_text(question.text, before)).ids)
    assert flags == [False] * length + [True] * (len(ids) - length)


def test_some_samples_follow_a_system_prompt_or_a_chat():
    rng = random.Random(0)
    drawn = [earlier_messages(UNIFORM, rng) for _ in range(3000)]
    systems = sum(bool(each) and each[0][0] == "system" for each in drawn)
    chats = sum(len(each) == 2 for each in drawn)
    assert 70 < systems < 170
    assert 70 < chats < 170
    assert systems + chats == sum(map(bool, drawn))


@pytest.mark.parametrize(("concise", "chinese"), [(False, 0.0), (True, 1.0)])
def test_a_mix_says_how_questions_are_answered(concise, chinese, tokenizer):
    mix = Mix(UNIFORM.weights, reflect=0.3, chinese=chinese, concise=concise)
    texts = [
        tokenizer.decode(ids, skip_special_tokens=False)
        for ids, _ in islice(samples(tokenizer, mix, "x", 1024), 60)
    ]
    thoughts = sum("<Thought>" in text.rpartition("assistant\n")[2] for text in texts)
    assert thoughts == (0 if concise else 60)
    reflected = sum(REFLECTION.strip() in text for text in texts)
    assert reflected == 0 if concise else 5 < reflected < 35
    last = [text.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0] for text in texts]
    assert sum(not text.isascii() for text in last) == (60 if chinese else 0)


def test_an_extended_tokenizer_keeps_every_id(small_tokenizer):
    longer = extend_tokenizer(small_tokenizer, 480, texts=300)
    old, new = small_tokenizer.get_vocab(), longer.get_vocab()
    assert len(new) == 480
    assert {token: new[token] for token in old} == old
    text = "小明有3个苹果。 How many apples? 🍓"
    assert longer.decode(longer.encode(text).ids) == text
    assert len(longer.encode(text).ids) < len(small_tokenizer.encode(text).ids)
    plain = "Count the letter r."
    assert len(longer.encode(plain).ids) <= len(small_tokenizer.encode(plain).ids)


def test_attention_gradients():
    torch.manual_seed(0)
    q, k, v = (torch.randn(*s, dtype=torch.float64) for s in ((2, 3, 5, 4), (2, 5, 4), (2, 5, 4)))
    inputs = tuple(x.requires_grad_() for x in (q, k, v))
    assert torch.autograd.gradcheck(SharedHeadAttention.apply, inputs)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k[:, None].expand_as(q), v[:, None].expand_as(q), is_causal=True, scale=1.0
    )
    assert torch.allclose(SharedHeadAttention.apply(*inputs), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 8, 24), (2, 24, 8), (1, 16, 16)])
def test_orthogonalised_updates_have_even_singular_values(shape, dtype):
    torch.manual_seed(0)
    update = orthogonalise(torch.randn(shape), dtype) / (0.2 * max(shape[1:]) ** 0.5)
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.5
    assert values.max() < 1.4


@pytest.mark.parametrize("model", MODELS)
def test_a_resumed_training_is_the_same_training(model, tmp_path, tokenizer):
    config = tiny_config(model)
    cut = batches(tokenizer, UNIFORM, "x", tokens=800, parts=2, context=1024, count=24)
    with ThreadPoolExecutor(2) as pool:

        def go(run, some):
            return [train_step(run, batch, 1e-3, pool) for batch in some]

        whole = start(config, tmp_path / "none", 3, pool)
        losses = go(whole, cut[:4])
        part = start(config, tmp_path / "none", 3, pool)
        go(part, cut[:2])
        save(part, tmp_path / "checkpoint")
        resumed = start(config, tmp_path / "checkpoint", 4, pool)
        assert resumed.counts == part.counts
        assert go(resumed, cut[2:4]) == losses[2:]
    assert losses[-1] < losses[0]
    for name, weight in whole.network.named_parameters():
        assert torch.equal(weight, dict(resumed.network.named_parameters())[name])
        assert torch.equal(whole.average[name], resumed.average[name])


def test_a_larger_model_begins_as_the_smaller_one(tmp_path):
    """More tokens and a further layer change nothing at first."""
    ids = torch.arange(3, 40)[None]
    with ThreadPoolExecutor(1) as pool:
        small = start(tiny_config("nano-marco"), tmp_path / "none", 0, pool)
        export(small, tiny_config("nano-marco"), tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:1000].clone()
        save_file(weights, tmp_path / "model.safetensors")
        large = start(tiny_config("nano-marco", 2), tmp_path / "none", 1, pool, init=tmp_path)
        same = start(tiny_config("nano-marco"), tmp_path / "none", 2, pool, init=tmp_path)
    with torch.no_grad():
        assert torch.equal(large.network(ids), same.network(ids))
        assert torch.equal(large.average["model.norm.weight"], same.average["model.norm.weight"])


def test_batches_are_a_function_of_their_seed(tokenizer):
    options = {"tokens": 1600, "parts": 4, "context": 1024, "count": 40}
    first, again = (batches(tokenizer, UNIFORM, "a", **options) for _ in range(2))
    assert first == again != batches(tokenizer, UNIFORM, "b", **options)
    for part in (part for batch in first for part in batch):
        assert len(part) == 1 or len(part) * max(len(ids) for ids, _ in part) <= 400


def test_the_learning_rate_rises_stays_and_falls():
    rates = [learning_rate(done, 1000, 1.0, 0.4, warmup=100) for done in (0, 49, 200, 600, 800)]
    assert rates == pytest.approx([0.01, 0.5, 1.0, 1.0, 0.5])
    assert learning_rate(1000, 1000, 1.0, 0.4) == 0.0


def test_a_mix_is_read_from_its_file(tmp_path):
    file = tmp_path / "mix.json"
    file.write_text(json.dumps({"weights": {"facts": [1] * 8}, "reflect": 0.2, "chinese": 0.1}))
    assert read_mix(str(file)) == Mix({"facts": (1,) * 8}, 0.2, 0.1)
    assert read_mix(None) is UNIFORM


def test_the_folders_of_a_training_have_defaults():
    args = parse(["nano-llama"])
    assert (args.work, args.folder) == (
        Path(".train/nano-llama"),
        Path(".train/nano-llama/model"),
    )
