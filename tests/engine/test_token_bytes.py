"""token_bytes: the pieces concatenate to what the tokenizer decodes, whatever its decoder is."""

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from marco_fast.engine.token_bytes import token_bytes
from marco_fast.errors import ModelError
from tests.support.models import save_tokenizer
from tests.support.tokenizers import (
    bpe_with_suffix,
    chatml,
    llama2,
    llama3,
    unigram,
    wordpiece,
)

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


FAMILIES = {
    "chatml": chatml,
    "llama3": llama3,
    "llama2": llama2,
    "llama2, metaspace": lambda: llama2(metaspace=True),
    "unigram": unigram,
    "wordpiece": wordpiece,
    "wordpiece, no cleanup": lambda: wordpiece(cleanup=False),
    "bpe with suffix": bpe_with_suffix,
}
SCRIPTS = [
    *TEXTS,
    "",
    " ",
    "the answer is 42, isn't it? Why not! I do not know.",
    "def f(x):\n    return x[0] + {'a': 1}  # why\n\n\tpass\r\n",
    "Здравствуй, мир",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "こんにちは、世界。",
    "안녕하세요 세계",
    "e\N{COMBINING ACUTE ACCENT} o\N{COMBINING DIAERESIS}",
    "\N{FAMILY}\N{REGIONAL INDICATOR SYMBOL LETTER D}\N{REGIONAL INDICATOR SYMBOL LETTER E}",
    "<0x41> \u2581 _ ## </w> \u0120",
    "12,345.67 % of $ 8 = ?",
    "\xa0no\u3000break\u200b",
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    tokenizer = FAMILIES[request.param]()
    tokenizer.add_tokens(["<call>", "<back>"])  # not special
    return tokenizer, token_bytes(tokenizer)


def joined(table: list[bytes], ids: list[int]) -> str:
    return b"".join(table[each] for each in ids).decode(errors="replace")


@pytest.mark.parametrize("text", [*SCRIPTS, "a <call> b<back>, c"])
def test_pieces_concatenate_to_what_the_tokenizer_decodes(family, text):
    """Some decoders drop a space at one end of a text; inside of a reply it is there."""
    tokenizer, table = family
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decode = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    assert joined(table, ids).strip(" ") == tokenizer.decode(ids, **decode).strip(" ")
    word = tokenizer("why", add_special_tokens=False)["input_ids"]
    inside = tokenizer.decode([*word, *ids, *word], **decode).strip(" ")
    assert joined(table, [*word, *ids, *word]).strip(" ") == inside


def with_decoder(decoder) -> transformers.PreTrainedTokenizerFast:
    tokenizer = llama2()
    tokenizer.backend_tokenizer.decoder = decoder
    return tokenizer


@pytest.mark.parametrize(
    ("decoder", "names"),
    [
        (decoders.CTC(), "CTC"),
        (decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")]), "Fuse . Replace"),
        (decoders.Sequence([decoders.Fuse(), decoders.Metaspace()]), "Fuse . Metaspace"),
        (decoders.Sequence([decoders.Replace("a", "b"), decoders.ByteLevel()]), "ByteLevel"),
        (decoders.Sequence([decoders.Sequence([decoders.CTC()])]), "CTC"),
    ],
)
def test_a_decoder_that_looks_at_neighbours_is_refused(decoder, names):
    with pytest.raises(ModelError, match=f"decoder spells each token alike, got .*{names}"):
        token_bytes(with_decoder(decoder))


@pytest.mark.parametrize(
    ("decoder", "text", "want"),
    [
        (
            decoders.Metaspace(replacement="e", prepend_scheme="never"),
            "\u2581answer",
            "\u2581answ r",
        ),
        (
            decoders.Sequence([decoders.Strip("r", 0, 1), decoders.Fuse()]),
            "\u2581answer",
            "\u2581answe",
        ),
        (
            decoders.Sequence([decoders.Replace("\u2581", "--"), decoders.Fuse()]),
            "\u2581the",
            "--the",
        ),
        (
            decoders.Sequence([decoders.Fuse(), decoders.Replace("\u2581", "-")]),
            "\u2581the",
            "-the",
        ),
        (decoders.Fuse(), "<0x41>", "<0x41>"),
        (decoders.ByteFallback(), "<0x41>", "A"),
        (None, "\u2581the", " \u2581the"),
    ],
)
def test_a_token_stands_for_what_it_is_inside_of_a_text(decoder, text, want):
    tokenizer = with_decoder(decoder)
    assert text in tokenizer.get_vocab()
    assert token_bytes(tokenizer)[tokenizer.convert_tokens_to_ids(text)].decode() == want


@pytest.mark.parametrize("make", [chatml, llama2, llama3])
def test_the_tags_of_a_reply_are_text_whether_special_or_not(make):
    for special in (False, True):
        tokenizer = make()
        tags = [AddedToken(each, special=special) for each in ("<think>", "</think>", "</Output>")]
        tokenizer.add_tokens(tags, special_tokens=special)
        table = token_bytes(tokenizer)
        for tag in ("<think>", "</think>", "</Output>"):
            assert table[tokenizer.convert_tokens_to_ids(tag)].strip() == tag.encode()
        ids = tokenizer("so 4</think>4 </Output>", add_special_tokens=False)["input_ids"]
        text = b"".join(table[each] for each in ids).decode()
        assert text.replace(" ", "") == "so4</think>4</Output>"
