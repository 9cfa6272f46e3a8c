"""The byte-level BPE tokenizer of the bundled nano models, trained on the generator's text.

Every byte has a token, so any text encodes and decodes to itself. Each digit is one token, and so
is each Chinese character of the questions, so that a name has the same tokens in every context.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from marco_fast.files import write_whole
from marco_fast.questions.questions import LEVELS, TESTS, make_question, write_answer
from marco_fast.search.marco import REFLECTION

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# newlines | punctuation and space before a number | word | digit | punctuation | white space
_PIECES = r"\n+|[^\s\p{L}\p{N}]+ (?=\p{N})| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s"


def train_tokenizer(base_size: int, size: int, texts: int = 20000, seed: int = 0) -> Tokenizer:
    """A tokenizer of `base_size` tokens trained on English questions, extended to `size` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=base_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(texts, seed, ("en",)), trainer)
    return extend_tokenizer(tokenizer, size, texts, seed)


def _corpus(texts: int, seed: int, languages: tuple[str, ...]) -> Iterator[str]:
    """Questions with their replies.

    Only about one in thirty is a letter question. So the words in which letters are counted are cut
    into short tokens, and most tokens are words that the questions are phrased with.
    """
    rng = random.Random(f"tokenizer {seed}")
    tests = [test for test in TESTS for _ in range(1 if test == "letters" else 6)]
    for index in range(texts):
        test, language = tests[index % len(tests)], languages[index % len(languages)]
        question = make_question(test, rng.choice(LEVELS), "train", rng, language)
        yield f"{question.text}\n{write_answer(question)}{REFLECTION}"


def extend_tokenizer(
    tokenizer: Tokenizer, size: int, texts: int = 20000, seed: int = 0
) -> Tokenizer:
    """The tokenizer with more merges, up to `size` tokens.

    Every token keeps its id, so that the training of a model can continue with a larger vocab_size.
    """
    pieces: Counter[str] = Counter()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in _corpus(texts, seed, ("en", "zh", "zh")):
        for section in re.findall(r"[\x00-\x7f]+|[^\x00-\x7f]", text):
            cut = tokenizer.pre_tokenizer if section.isascii() else byte_level
            pieces.update(piece for piece, _ in cut.pre_tokenize_str(section))
    words = {piece: [t.value for t in tokenizer.model.tokenize(piece)] for piece in pieces}
    model = json.loads(tokenizer.to_str())
    vocabulary, merges = model["model"]["vocab"], model["model"]["merges"]
    while len(vocabulary) < size:
        pairs: Counter[tuple[str, str]] = Counter()
        for piece, tokens in words.items():
            for pair in pairwise(tokens):
                pairs[pair] += pieces[piece]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        vocabulary[best[0] + best[1]] = len(vocabulary)
        merges.append(list(best))
        for tokens in words.values():
            for i in range(len(tokens) - 1, 0, -1):
                if (tokens[i - 1], tokens[i]) == best:
                    tokens[i - 1 : i + 1] = [best[0] + best[1]]
    return Tokenizer.from_str(json.dumps(model))


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
    write_whole(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_whole(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
