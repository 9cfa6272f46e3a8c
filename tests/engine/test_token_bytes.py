"""token_bytes: the pieces concatenate to the text, byte-level or SentencePiece-like."""

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from marco_fast.engine.token_bytes import token_bytes
from tests.support.models import save_tokenizer

TEXTS = [
    "plain words",
    "  two  spaces\n\nand lines\t",
    "答案是四十二",
    "naïve café",
    "\N{SLIGHTLY SMILING FACE} \N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}",
    "a\x00b\x7f",
]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def sentencepiece():
    words = ["\u2581", "\u2581the", "the", "a", "b", "\u2581a"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocabulary |= {word: 259 + place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_pieces_concatenate_to_the_text(kind, text, request):
    tokenizer = request.getfixturevalue(kind)
    table = token_bytes(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(table[each] for each in ids).decode() == text


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_special_tokens_stand_for_nothing_and_every_id_has_an_entry(kind, request):
    tokenizer = request.getfixturevalue(kind)
    table = token_bytes(tokenizer)
    assert len(table) == len(tokenizer)
    for special in tokenizer.all_special_ids:
        if special != tokenizer.unk_token_id:
            assert table[special] == b""


def test_every_byte_can_be_said(byte_level):
    assert {bytes([byte]) for byte in range(256)} <= set(token_bytes(byte_level))


def test_added_tokens_that_are_not_special_are_text(byte_level, tmp_path):
    byte_level.save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(["<tool é>"])
    assert token_bytes(tokenizer)[-1] == "<tool é>".encode()
