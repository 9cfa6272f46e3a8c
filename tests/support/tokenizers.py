"""Small tokenizers of every family that a model may come with, with their chat templates."""

import json
from collections.abc import Sequence

import transformers
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.support.models import CHAT

__all__ = [
    "CHATS",
    "bpe_with_suffix",
    "byte_level",
    "chatml",
    "llama2",
    "llama3",
    "unigram",
    "wordpiece",
]

CORPUS = ["the answer is 42, and why not? user assistant system im_end INST hello world"] * 4
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}</s>"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)


def wrapped(tokenizer: Tokenizer, template: str | None, **tokens: str):
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)
    fast.chat_template = template
    return fast


def byte_level(special: Sequence[str], template: str | None, **tokens: str):
    """Byte-level BPE, as of Qwen and Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in special])
    tokenizer.add_tokens(["<think>"])  # not special
    return wrapped(tokenizer, template, **tokens)


def chatml():
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return byte_level(names, CHAT, eos_token="<|im_end|>")


def llama3():
    names = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    fast = byte_level(names, LLAMA3, bos_token=names[0], eos_token=names[3])
    bos = fast.convert_tokens_to_ids(names[0])
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{names[0]} $A", special_tokens=[(names[0], bos)]
    )
    return fast


def llama2(*, metaspace: bool = False, normalized: bool = False, template: str | None = MISTRAL):
    """SentencePiece-like BPE with byte fallback, as of Llama 2 and Mistral; adds BOS and EOS."""
    names = ["<unk>", "<s>", "</s>"]
    vocabulary = {name: place for place, name in enumerate(names)}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    for token in sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__):
        vocabulary[token] = len(vocabulary)
    merges = [tuple(m) for m in json.loads(trained.to_str())["model"]["merges"]]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(
        [AddedToken(each, special=True, normalized=normalized) for each in names]
    )
    tokenizer.add_special_tokens(
        [AddedToken("[INST]", rstrip=True), AddedToken("[/INST]", lstrip=True)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return wrapped(tokenizer, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram():
    """Unigram with a word mark of its own, whose model knows the special tokens' texts as well."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="_", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="_", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>",
        initial_alphabet=list("<>/s|_[]IMNEDT"), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["[INST]", "[/INST]"])
    return wrapped(tokenizer, MISTRAL, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def wordpiece(*, cleanup: bool = True):
    """WordPiece, as of BERT."""
    names = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=cleanup)
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=names, initial_alphabet=list("[]<>|_/.,?'!"),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    template = "{% for m in messages %}[CLS] {{ m.content }} [SEP]{% endfor %}"
    return wrapped(tokenizer, template, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def bpe_with_suffix():
    """BPE whose words end in "</w>", as of the first GPT."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=250, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False,
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz.,?!'<>"),
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrapped(tokenizer, None, unk_token="<unk>")


# name: a tokenizer with a chat template
CHATS = {
    "chatml": chatml,
    "llama3": llama3,
    "mistral": llama2,
    "mistral, metaspace": lambda: llama2(metaspace=True),
    "mistral, normalized": lambda: llama2(normalized=True),
    "unigram": unigram,
    "wordpiece": wordpiece,
}
