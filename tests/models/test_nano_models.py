"""The bundled models: their folders, their tokenizer, their answers."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import marco_fast.models
from examples.train_nano.network import MODELS, Network, frequencies
from examples.train_nano.samples import prompt_text
from marco_fast import Engine, SearchConfig, solve
from marco_fast.engine.loading.load import BUNDLED
from marco_fast.questions.questions import LANGUAGES, LEVELS, TESTS, is_correct, questions
from marco_fast.search.marco import as_messages, untemplated_prompt

FOLDER = Path(marco_fast.__file__).parent / "models"
WHOLE = SearchConfig(expansions=1, children=1, step_tokens=1024, rollout_tokens=0, temperature=0.0)


@pytest.fixture(scope="module", params=BUNDLED)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(name) -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / name / "tokenizer.json"))


@pytest.fixture(scope="module")
def chat_tokenizer(name):
    return PreTrainedTokenizerFast.from_pretrained(FOLDER / name)


@pytest.fixture(scope="module")
def transformers_model(name):
    return AutoModelForCausalLM.from_pretrained(FOLDER / name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def engine(name):
    with Engine.from_pretrained(name) as engine:
        yield engine


def test_the_folder_is_small_and_loads_as_it_is(name):
    folder = FOLDER / name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12 * 2**20
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    config = model.config
    heads = (config.num_attention_heads, config.num_key_value_heads)
    assert (config.model_type, heads) == {
        "nano-marco": ("qwen2", (7, 1)),
        "nano-llama": ("llama", (6, 2)),
    }[name]
    assert config.rope_parameters["rope_type"] == {"nano-llama": "llama3"}.get(name, "default")
    assert (config.head_dim, config.max_position_embeddings) == (32, 1024)
    assert model.dtype == torch.bfloat16


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
    assert tokenizer.encode("1024 apples").tokens[:4] == list("1024")
    for tag in ("<Thought>", "</Thought>", "<Output>", "</Output>"):
        assert tokenizer.token_to_id(tag) is None
        assert len(tokenizer.encode(tag).ids) > 1
    names = [tokenizer.id_to_token(i) for i in range(3)]
    assert names == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.mark.parametrize("chinese", ["小明", "周长", "矛盾"])
def test_a_chinese_character_is_one_token_wherever_it_stands(chinese, tokenizer):
    alone = tokenizer.encode(chinese).ids
    assert len(alone) == len(chinese)
    ids = tokenizer.encode(f"给了{chinese}三").ids
    assert any(ids[i : i + len(alone)] == alone for i in range(len(ids)))


def test_the_chat_template_writes_the_prompt_of_the_training(chat_tokenizer):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "<Output>\n1\n</Output>"},
        {"role": "user", "content": "How many r are in strawberry?"},
    ]
    text = chat_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    before = [(each["role"], each["content"]) for each in chat[:-1]]
    assert text == prompt_text(chat[-1]["content"], before)
    assert chat_tokenizer.eos_token == "<|im_end|>"
    assert chat_tokenizer.pad_token == "<|endoftext|>"


@pytest.mark.parametrize("test", TESTS)
def test_the_engine_cuts_prompts_as_the_training_does(test, engine, tokenizer):
    """transformers' AutoTokenizer would cut them as Qwen2's own tokenizer does."""
    for language in LANGUAGES:
        for level in LEVELS:
            for question in islice(questions(test, level, "test", language=language), 5):
                messages = as_messages(question.text)
                ids = engine.prompt_token_ids(messages, untemplated_prompt(messages))
                assert ids == tokenizer.encode(prompt_text(question.text)).ids, question.text


def test_the_network_of_the_training_is_the_model(name, transformers_model, tokenizer):
    network = Network(MODELS[name](), frequencies(MODELS[name]()))
    weights = transformers_model.state_dict()
    network.load_state_dict({key: weights[key] for key in network.state_dict()})
    ids = torch.tensor([tokenizer.encode(prompt_text("小明有3个苹果。 How many r?")).ids])
    with torch.no_grad():
        expected = transformers_model(ids).logits[0]
        made = network.logits(network(ids)[0])
    assert (made - expected).abs().max() < 1e-3 * expected.std()


def test_the_engine_answers_what_transformers_generates(engine, transformers_model, tokenizer):
    for test in TESTS:
        question = next(questions(test, 2, "test"))
        ids = torch.tensor([tokenizer.encode(prompt_text(question.text)).ids])
        out = transformers_model.generate(ids, do_sample=False, max_new_tokens=500)
        text = tokenizer.decode(out[0, ids.shape[1] :].tolist())
        assert text.startswith(solve(question.text, engine, WHOLE).text)


def accuracy(engine: Engine, test: str, level: int, language: str, count: int) -> float:
    """The share of greedy answers that are right."""
    asked = list(islice(questions(test, level, "test", seed=11, language=language), count))
    results = solve([each.text for each in asked], engine, WHOLE)
    right = [is_correct(q, r.answer) for q, r in zip(asked, results, strict=True)]
    return sum(right) / count


# The least share of right greedy answers to 25 questions of level 1; what nano-llama does not
# reach without a thought is left out.
EASY = {
    "nano-marco": {
        "logic": 0.85, "letters": 0.85, "geometry": 0.85, "steps": 0.85, "facts": 0.85,
        "contradictions": 0.75,
    },
    "nano-llama": {"letters": 0.3, "contradictions": 0.35},
}  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("name", "test"), [(name, test) for name in EASY for test in EASY[name]], indirect=["name"]
)
def test_easy_questions_are_answered(test, language, name, engine):
    assert accuracy(engine, test, 1, language, 25) >= EASY[name][test]


@pytest.mark.parametrize(
    "text",
    [
        "How many times does the letter r occur in strawberry?",
        "How many r are in strawberry?",
        "Count the letter r in the word strawberry.",
    ],
)
def test_the_first_question_of_every_visitor(text):
    with Engine.from_pretrained("nano-marco", max_branches=1) as engine:
        result = solve(text, engine, WHOLE)
    assert result.text.startswith("<Thought>\n")
    assert result.answer == "3"


def test_a_question_after_a_chat_and_a_system_prompt():
    chat = [
        {"role": "user", "content": "How many s are in glass?"},
        {"role": "assistant", "content": "<Output>\n2\n</Output>"},
        {"role": "user", "content": "How many r are in strawberry?"},
    ]
    with Engine.from_pretrained("nano-marco", max_branches=8) as engine:
        config = SearchConfig(expansions=8)
        assert solve(chat, engine, config).answer == "3"
        assert solve(chat[-1:], engine, config, system="marco-o1").answer == "3"


def test_whole_replies_differ_and_repeat_with_their_seed():
    [question] = islice(questions("facts", 6, "test"), 1)
    options = {"expansions": 4, "children": 4, "step_tokens": 1024, "rollout_tokens": 0}
    with Engine.from_pretrained("nano-marco", max_branches=4) as engine:
        first, again, other = (
            solve(question.text, engine, SearchConfig(**options, temperature=1.3, seed=seed))
            for seed in (1, 1, 2)
        )
    assert first.tree.token_ids == again.tree.token_ids != other.tree.token_ids
    assert len({tuple(ids) for ids in first.tree.token_ids}) > 2
