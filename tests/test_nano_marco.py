"""The bundled model: its folder, its tokenizer, its answers; and the pieces of its training."""

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import marco_fast.models
from marco_fast import Engine
from marco_fast.models.decode import Decoder, choose, replies
from marco_fast.models.evaluate import (
    auroc,
    easy_level,
    hard_order,
    hard_tier,
    load,
    outcomes,
    output_of,
    wilson,
)
from marco_fast.models.network import SharedHeadAttention
from marco_fast.models.optimizer import orthogonalise
from marco_fast.models.questions import (
    LEVELS,
    REFLECTION,
    TESTS,
    is_correct,
    questions,
    write_answer,
)
from marco_fast.models.samples import UNIFORM, batches, prompt_text, sample
from marco_fast.models.train import learning_rate, qwen2_config, save, start, train_step

FOLDER = Path(marco_fast.models.__file__).parent / "nano-marco"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def chat_tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def transformers_model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def nano() -> tuple[Decoder, Tokenizer]:
    return load(FOLDER)


def test_the_folder_is_small_and_loads_as_it_is():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 12 * 2**20
    model, report = AutoModelForCausalLM.from_pretrained(FOLDER, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    config = model.config
    assert config.model_type == "qwen2"
    assert (config.num_attention_heads, config.num_key_value_heads) == (7, 1)
    assert (config.head_dim, config.max_position_embeddings) == (32, 1024)
    assert model.dtype == torch.bfloat16
    assert 2_500_000 <= model.num_parameters() <= 5_000_000


@given(text=st.text())
def test_any_text_survives_the_tokenizer(text, tokenizer):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "text",
    [
        "草莓里有几个字母r？",
        "🍓🍓 naïve café\u200b\t\r\n\n\n x",
        "\x00\x7f",
        "1234567890",
        "  two  ",
    ],
)
def test_hard_texts_survive_the_tokenizer(text, tokenizer, chat_tokenizer):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    ids = chat_tokenizer(text)["input_ids"]
    assert chat_tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_digits_and_tags_are_plain_pieces(tokenizer):
    tokens = tokenizer.encode("1024 apples").tokens
    assert tokens[:4] == list("1024")
    for tag in ("<Thought>", "</Thought>", "<Output>", "</Output>"):
        assert tokenizer.token_to_id(tag) is None
        assert len(tokenizer.encode(tag).ids) > 1
    names = [tokenizer.id_to_token(i) for i in range(3)]
    assert names == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def test_the_chat_template_writes_the_prompt_of_the_training(chat_tokenizer):
    message = [{"role": "user", "content": "How many r are in strawberry?"}]
    text = chat_tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert text == prompt_text(message[0]["content"])
    assert chat_tokenizer.eos_token == "<|im_end|>"
    assert chat_tokenizer.pad_token == "<|endoftext|>"


@pytest.mark.parametrize("test", TESTS)
def test_pieces_encode_as_the_whole_does(test, tokenizer):
    for question in islice(questions(test, 4, "test"), 20):
        ids, flags = sample(tokenizer, question, "plain", random.Random(0))
        whole = prompt_text(question.text) + write_answer(question) + "<|im_end|>"
        assert ids == tokenizer.encode(whole).ids
        prompt = tokenizer.encode(prompt_text(question.text)).ids
        assert flags == [False] * len(prompt) + [True] * (len(ids) - len(prompt))


@pytest.mark.parametrize("test", TESTS)
def test_the_engine_cuts_prompts_as_the_training_does(test, tokenizer):
    """transformers' AutoTokenizer would cut them as Qwen2's own tokenizer does."""
    with Engine.from_pretrained("nano-marco", max_branches=1, kv_tokens=2048) as engine:
        for level in LEVELS:
            for question in islice(questions(test, level, "test"), 20):
                ids = engine.prompt_token_ids(question.text)
                assert ids == tokenizer.encode(prompt_text(question.text)).ids, question.text


def test_a_slip_and_the_phrase_have_no_loss(tokenizer):
    question = next(questions("sums", 5, "train"))
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


def test_the_networks_are_one_model(transformers_model, nano, tokenizer):
    ids = torch.tensor([tokenizer.encode(prompt_text("How many r are in strawberry?")).ids])
    with torch.no_grad():
        expected = transformers_model(ids).logits[0]
        network = nano[0].network
        rough = network.logits(network(ids)[0])
        cache, exact = nano[0].new_cache(1), []
        for column in range(ids.shape[1]):
            positions = torch.tensor([column])
            exact.append(nano[0].step(ids[:, column], positions, cache, column + 1)[0])
    scale = expected.std()
    assert (torch.stack(exact) - expected).abs().max() < 1e-3 * scale
    assert (rough - expected).abs().mean() < 0.05 * scale  # bfloat16 products


def test_the_loop_decodes_what_transformers_generates(transformers_model, nano, tokenizer):
    asked = [q for test in TESTS for q in islice(questions(test, 2, "test"), 2)]
    made = replies(*nano, [prompt_text(q.text) for q in asked])
    for question, [reply] in zip(asked, made, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt_text(question.text)).ids])
        out = transformers_model.generate(ids, do_sample=False, max_new_tokens=400)
        text = tokenizer.decode(out[0, ids.shape[1] :].tolist())
        assert reply.text == text
        assert reply.tokens == out.shape[1] - ids.shape[1]
        assert 0.2 <= reply.confidence <= 1.0


@pytest.mark.parametrize("test", TESTS)
def test_easy_questions_are_answered(test, nano):
    made = outcomes(*nano, list(islice(questions(test, 1, "test", seed=11), 20)))
    assert sum(one.right[0] for one in made) >= 16


@pytest.mark.parametrize(
    "text",
    [
        "How many times does the letter r occur in strawberry?",
        "How many r are in strawberry?",
        "Count the letter r in the word strawberry.",
    ],
)
def test_the_first_question_of_every_visitor(text, nano):
    [[reply]] = replies(*nano, [prompt_text(text)])
    assert reply.text.startswith("<Thought>\n")
    assert output_of(reply.text).strip() == "3"


def test_samples_differ_and_repeat_with_their_seed(nano):
    prompts = [prompt_text(q.text) for q in islice(questions("sums", 6, "test"), 2)]
    options = {"samples": 4, "temperature": 1.0}
    first, again, other = (
        [[r.text for r in many] for many in replies(*nano, prompts, seed=seed, **options)]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(set(first[0] + first[1])) > 2


def test_choose_keeps_to_the_shortest_prefix():
    logits = torch.zeros(1, 100)
    logits[0, 7], logits[0, 9] = 5.0, 6.0
    draws = {
        int(choose(logits, 1.0, 0.7, torch.Generator().manual_seed(seed))) for seed in range(60)
    }
    assert draws == {7, 9}
    assert int(choose(logits, 0.0, 0.7, torch.Generator())) == 9


def test_attention_gradients():
    torch.manual_seed(0)
    q, k, v = (torch.randn(*s, dtype=torch.float64) for s in ((2, 3, 5, 4), (2, 5, 4), (2, 5, 4)))
    inputs = tuple(x.requires_grad_() for x in (q, k, v))
    assert torch.autograd.gradcheck(SharedHeadAttention.apply, inputs)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k[:, None].expand_as(q), v[:, None].expand_as(q), is_causal=True, scale=1.0
    )
    assert torch.allclose(SharedHeadAttention.apply(*inputs), expected)


@pytest.mark.parametrize("shape", [(2, 8, 24), (2, 24, 8), (1, 16, 16)])
def test_orthogonalised_updates_have_even_singular_values(shape):
    torch.manual_seed(0)
    update = orthogonalise(torch.randn(shape)) / (0.2 * max(shape[1:]) ** 0.5)
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_a_resumed_training_is_the_same_training(tmp_path, tokenizer):
    config = qwen2_config(layers=1, hidden=224, inner=32)
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


def test_wilson_intervals():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == pytest.approx(1.0)


def test_auroc_counts_pairs():
    pairs = [(0.9, True), (0.8, False), (0.8, True), (0.1, False)]
    assert auroc(pairs) == pytest.approx(3.5 / 4)
    assert auroc([(0.1, True), (0.2, True)]) is None


def test_tiers_are_chosen_by_their_rule():
    greedy = {1: 1.0, 2: 0.98, 3: 0.94, 4: 0.98, 5: 0.66, 6: 0.71, 7: 0.2}
    assert easy_level(greedy) == 2
    assert easy_level({1: 0.9, 2: 0.93}) == 2
    assert hard_order(greedy)[:2] == [6, 5]
    assert hard_order({1: 0.6, 2: 0.8}) == [1, 2]
    assert hard_order({1: 0.86, 2: 0.51, 3: 0.4}) == [2]  # inside the band, though further
    assert hard_order({1: 0.99, 2: 0.2}) == []
    assert hard_tier({6: 0.91, 5: 0.92, 4: 0.99}) == 5
    assert hard_tier({6: 0.9, 5: 0.91, 4: 0.8}) == 5


def test_output_of():
    assert output_of("<Thought>\nx\n</Thought>\n<Output>\n 12\n</Output>") == "\n 12\n"
    assert output_of("<Output>\n12") == ""
    question = next(questions("sums", 1, "test"))
    assert is_correct(question, output_of(write_answer(question)))
