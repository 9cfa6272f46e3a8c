"""The tokenizer of a GGUF file: the ids of the one that the file was made from."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from marco_fast import ModelError
from marco_fast.engine.gguf.file import GgufFile
from marco_fast.engine.gguf.header import read_gguf
from marco_fast.engine.gguf.splits import SPLITS
from marco_fast.engine.gguf.tokenizer import Vocabulary, ending_ids, tokenizer_of
from marco_fast.engine.token_bytes import token_bytes

TEXTS = [
    "the answer is 42",
    "  the\n\n\tanswer<|im_end|>",
    "Größe 中文 🎉 it's",
    "",
    " ",
    "<Output>",
]


def with_fields(**fields) -> GgufFile:
    """A file of some fields of the tokenizer, by the last parts of their names."""
    named = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    return GgufFile(Path("some.gguf"), named, {})


def made(**fields):
    return tokenizer_of(Vocabulary(with_fields(**fields)))


@pytest.fixture(scope="module")
def fields(files):
    """Those of a small byte-level BPE."""
    read = read_gguf(files.write("tokens.gguf")[0]).fields
    prefix = "tokenizer.ggml."
    return {name.removeprefix(prefix): each for name, each in read.items() if prefix in name}


def test_byte_level_bpe_has_the_ids_of_its_tokenizer_json(files, fields):
    tokenizer = made(**fields)
    for text in TEXTS:
        ids = files.tokenizer(text)["input_ids"]
        assert tokenizer(text)["input_ids"] == ids
        assert tokenizer.decode(ids) == files.tokenizer.decode(ids)
    assert token_bytes(tokenizer) == token_bytes(files.tokenizer)
    assert tokenizer.eos_token == "<|im_end|>"
    assert len(tokenizer) == len(files.tokenizer)  # without the eight that fill the matrix up


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_merges_by_score_and_spells_the_rest_in_bytes(prefix):
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [normalizers.Prepend("▁")] * prefix + [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        + [decoders.Strip(" ", 1, 0)] * prefix
    )
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    backend.train_from_iterator(["the answer is there, and then the other one"] * 3, trainer)
    vocabulary = backend.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokenizer = made(
        model="llama", tokens=tokens, scores=[-float(each) for each in range(len(tokens))],
        token_type=[2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
        bos_token_id=1, eos_token_id=2, unknown_token_id=0, add_space_prefix=prefix,
    )  # fmt: skip
    for text in ["the answer", "then é 中 the\nother", "other  one ", "the</s>there"]:
        ids = [each for part in text.split("</s>") for each in [2, *backend.encode(part).ids]][1:]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        assert tokenizer(text)["input_ids"] == [1, *ids]
    assert tokenizer.decode(backend.encode("then é the").ids) == "then é the"


def test_sentencepiece_merges_into_ordinary_tokens_alone():
    tokens = ["<unk>", "a", "b", "ab", "ba", "bab"]
    common = {"model": "llama", "tokens": tokens, "scores": [0.0] * 6, "add_space_prefix": False}
    for kind, ids in [(1, [3]), (5, [1, 2]), (6, [1, 2])]:  # 5: unused, 6: a byte
        tokenizer = made(**common, token_type=[2, 1, 1, kind, 1, 1], unknown_token_id=0)
        assert tokenizer("ab", add_special_tokens=False)["input_ids"] == ids
        assert tokenizer("ba", add_special_tokens=False)["input_ids"] == [4]


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "it's 1234  a", ["it", "'s", " 1234", " ", " a"]),
        ("smollm", "it's 12 a", ["it", "'s", " ", "1", "2", " a"]),
        ("llama-bpe", "it'S 12345\n\n a(b", ["it", "'S", " ", "123", "45", "\n\n", " a", "(b"]),
        ("qwen2", "it's 123\n\n a", ["it", "'s", " ", "1", "2", "3", "\n\n", " a"]),
        ("tekken", "camelCase it's 12", ["camel", "Case", " it", "'s", " ", "1", "2"]),
        ("gpt-4o", "camelCase it's 1234", ["camel", "Case", " it's", " ", "123", "4"]),
        ("deepseek-v3", "1234 中文 a.b", ["123", "4", " ", "中文", " a", ".b"]),
        ("deepseek-coder", "a 12\nb", ["a", " ", "1", "2", "\n", "b"]),
        ("falcon", "a=b 1234", ["a", "=", "b", " ", "123", "4"]),
        ("default", "a=b 1234", ["a", "=", "b", " ", "123", "4"]),
    ],
)
def test_words_are_cut_as_the_named_rule_says(pre, text, words):
    cut = SPLITS[pre].pre_tokenizer().pre_tokenize_str(text)
    assert [text[slice(*place)] for _, place in cut] == words


def test_a_word_that_is_a_token_stays_whole_for_llama_3(fields):
    tokens = [*fields["tokens"], "xyz"]
    changed = fields | {"tokens": tokens, "token_type": [*fields["token_type"], 1]}
    assert made(**changed | {"pre": "llama-bpe"})("xyz")["input_ids"] == [len(tokens) - 1]
    assert len(made(**changed)("xyz")["input_ids"]) == 3


@pytest.mark.parametrize(
    ("pre", "flag", "begins"),
    [
        ("gpt-2", None, False),
        ("gpt-2", True, True),
        ("llama-bpe", None, True),
        ("tekken", False, False),
    ],
)
def test_bos_stands_before_a_text_as_the_file_or_its_kind_says(fields, pre, flag, begins):
    flags = {} if flag is None else {"add_bos_token": flag}
    ids = made(**fields | {"pre": pre, "bos_token_id": 0} | flags)("the")["input_ids"]
    assert (ids[0] == 0) == begins


def test_user_defined_tokens_are_text_that_is_never_cut(fields):
    changed = fields | {
        "tokens": [*fields["tokens"], "<think>"],
        "token_type": [*fields["token_type"], 4],
    }
    tokenizer = made(**changed)
    (index,) = tokenizer("<think>")["input_ids"]
    assert index == len(fields["tokens"])
    assert tokenizer.decode([index], skip_special_tokens=True) == "<think>"


def test_special_tokens_that_end_a_reply_are_known_by_their_text(fields):
    assert ending_ids(Vocabulary(with_fields(**fields))) == [2, 0]
    fields = fields | {"eot_token_id": 1}
    assert ending_ids(Vocabulary(with_fields(**fields))) == [2, 1, 0]


def test_there_may_be_several_chat_templates_or_none(fields):
    file = with_fields(**fields)
    assert tokenizer_of(Vocabulary(file)).chat_template is None
    file.fields["tokenizer.chat_template"] = "plain"
    assert tokenizer_of(Vocabulary(file)).chat_template == "plain"
    file.fields["tokenizer.chat_templates"] = ["tool_use", "default"]
    file.fields["tokenizer.chat_template.tool_use"] = "tools"
    assert tokenizer_of(Vocabulary(file)).chat_template == {"default": "plain", "tool_use": "tools"}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"tokens": []}, "a tokenizer .*no tokenizer.ggml.tokens"),
        ({"tokens": ["a", "b", "a"], "token_type": [1, 1, 1]}, "each token once .*'a' twice"),
        (
            {"token_type": [1]},
            "one number for each of .* tokens .*got 1 in tokenizer.ggml.token_ty",
        ),
        ({"model": "bert"}, "of the kind gpt2 or llama .*got 'bert'"),
        ({"model": "llama"}, "tokenizer.ggml.scores for a tokenizer of the kind llama"),
        ({"pre": "never-heard-of"}, "a known tokenizer.ggml.pre .*'never-heard-of'"),
        ({"merges": ["nothing here"]}, "a tokenizer that can be made .*out of vocabulary"),
        ({"eos_token_id": 1 << 20}, "a token's id as tokenizer.ggml.eos_token_id .*1048576"),
        ({"bos_token_id": True}, "a token's id as tokenizer.ggml.bos_token_id .*True"),
        ({"add_bos_token": 1}, "true or false as tokenizer.ggml.add_bos_token"),
    ],
)
def test_a_tokenizer_that_makes_no_sense_is_refused(fields, changes, match):
    with pytest.raises(ModelError, match=match):
        made(**fields | changes)


def test_an_old_file_that_names_no_rule_is_read_with_a_warning(fields):
    old = {name: each for name, each in fields.items() if name != "pre"}
    with pytest.warns(UserWarning, match="does not say how words are cut"):
        made(**old)
