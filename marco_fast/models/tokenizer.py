"""The byte-level BPE tokenizer of the bundled nano models, trained on the generator's text.

Every byte has a token, so any text encodes and decodes to itself. Digits stay single tokens.
"""

import json
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .questions import LEVELS, REFLECTION, TESTS, make_question, write_answer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# newlines | punctuation with the space before a number | words | one digit | punctuation | spaces
_PIECES = r"\n+|[^\s\p{L}\p{N}]+ (?=\p{N})| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s"


def train_tokenizer(vocab_size: int = 1024, texts: int = 20000, seed: int = 0) -> Tokenizer:
    """A tokenizer trained on `texts` generated questions with their replies.

    Letter questions are one in twenty-one, so that the words to count in are cut into short pieces
    and the vocabulary goes to the words of the phrasings.
    """
    rng = random.Random(f"tokenizer {seed}")
    tests = [test for test in TESTS for _ in range(1 if test == "letters" else 7)]
    tests = [tests[i % len(tests)] for i in range(texts - 1)]
    corpus = (make_question(test, rng.choice(LEVELS), "train", rng) for test in tests)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    replies = (f"{question.text}\n{write_answer(question)}{REFLECTION}" for question in corpus)
    tokenizer.train_from_iterator(replies, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json, each whole or not at all."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>"],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    replace_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    replace_text(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Writes a file beside its place and moves it there."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
