"""The tokenizer and the chat template of a GGUF file, as transformers has them."""

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from marco_fast.engine.gguf.file import GgufFile
from marco_fast.engine.gguf.splits import SPLITS
from marco_fast.errors import ModelError

__all__ = ["Vocabulary", "ending_ids", "tokenizer_of"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # tokenizer.ggml.token_type
# What a tokenizer of each kind cannot do without.
NEEDED = {"gpt2": "tokenizer.ggml.merges", "llama": "tokenizer.ggml.scores"}
SPACE = "▁"  # SentencePiece's spelling of a space
# Tokens that end a reply whatever the file says: it names one or two, chat models have more.
ENDS = re.compile(
    r"<\|(eot_id|eom_id|im_end|end|endoftext|end_of_text|return|call)\|>|_?<EOT>|\[EOT\]"
    r"|<end_of_turn>|<end_of_utterance>|<｜end▁of▁sentence｜>"
)


class Vocabulary:
    """The tokens of a file.

    Raises:
        ModelError: there are none, one is there twice, or another array is not as long.
    """

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.tokens = file.texts("tokenizer.ggml.tokens")
        if not self.tokens:
            raise file.refusal("a tokenizer", "no tokenizer.ggml.tokens")
        self.kinds = self._as_long("token_type", NORMAL)
        self.ids = {token: index for index, token in enumerate(self.tokens) if token}
        if len(self.ids) < len(self.tokens) - self.tokens.count(""):
            counted = Counter(self.tokens).items()
            twice = next(token for token, count in counted if token and count > 1)
            raise file.refusal("each token once", f"{twice!r} twice")

    def _as_long(self, name: str, usual: float) -> Sequence[float]:
        found = self.file.numbers(f"tokenizer.ggml.{name}")
        if found and len(found) != len(self.tokens):
            got = f"{len(found)} in tokenizer.ggml.{name}"
            raise self.file.refusal(f"one number for each of {len(self.tokens)} tokens", got)
        return found or [usual] * len(self.tokens)

    def scores(self) -> Sequence[float]:
        """The score of each token."""
        return self._as_long("scores", 0.0)

    def of_kind(self, *kinds: int) -> list[str]:
        """The tokens of these kinds, in their order."""
        pairs = zip(self.tokens, self.kinds, strict=True)
        return [token for token, kind in pairs if token and kind in kinds]

    def special(self, name: str) -> str | None:
        """A special token by its role in the file; None where the file names none.

        Raises:
            ModelError: its id is no token's.
        """
        key = f"tokenizer.ggml.{name}_token_id"
        index = self.file.fields.get(key)
        if index is None:
            return None
        known = isinstance(index, int) and not isinstance(index, bool)
        if not known or not 0 <= index < len(self.tokens) or not self.tokens[index]:
            raise self.file.refusal(f"a token's id as {key}", repr(index)[:80])
        return self.tokens[index]

    def id_of(self, name: str) -> int | None:
        """The id of a special token by its role in the file, as `special`."""
        token = self.special(name)
        return None if token is None else self.ids[token]


def tokenizer_of(vocabulary: Vocabulary) -> Any:
    """The tokenizer; its chat template is that of the file, or None.

    Raises:
        ModelError: it is of an unknown kind, or makes no sense.
    """
    file = vocabulary.file
    kind = file.text("tokenizer.ggml.model")
    if kind not in NEEDED:
        raise file.refusal(f"a tokenizer of the kind {' or '.join(NEEDED)}", repr(kind))
    if NEEDED[kind] not in file.fields:
        raise file.refusal(f"{NEEDED[kind]} for a tokenizer of the kind {kind}", "none")
    unknown = vocabulary.special("unknown")
    try:
        if kind == "gpt2":
            backend, bos = _byte_level(vocabulary)
        else:
            backend, bos = _sentencepiece(vocabulary, unknown), True
    except ModelError:
        raise
    except Exception as error:  # the tokenizers library raises no kind of its own
        cause = " ".join(str(error).split())[:200]
        raise file.refusal("a tokenizer that can be made", f"an error: {cause}") from error
    _add_special(backend, vocabulary)
    _frame(backend, vocabulary, file.flag("tokenizer.ggml.add_bos_token", bos), kind == "gpt2")
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
    roles = {role: vocabulary.special(name) for role, name in names.items()}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        unk_token=unknown,
        **{role: token for role, token in roles.items() if token is not None},
    )
    tokenizer.chat_template = _template(file)
    return tokenizer


def ending_ids(vocabulary: Vocabulary) -> list[int]:
    """The ids that end a reply: those that the file names, and those that are known by their text.

    Raises:
        ModelError: the file names one that is no token's.
    """
    named = [vocabulary.special(each) for each in ("eos", "eot", "eom")]
    known = filter(ENDS.fullmatch, vocabulary.of_kind(CONTROL, USER_DEFINED))
    return list(dict.fromkeys(vocabulary.ids[each] for each in (*named, *known) if each))


def _byte_level(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """Byte-level BPE, and whether a text begins with BOS where the file does not say so."""
    file = vocabulary.file
    name = file.text("tokenizer.ggml.pre")
    if name is None:
        warnings.warn(
            f"{str(file.path)!r} does not say how words are cut (tokenizer.ggml.pre): it was made "
            "by an old converter, and its tokens may not be those of the model",
            stacklevel=2,
        )
    split = SPLITS.get(name or "default")
    if split is None:
        raise file.refusal("a known tokenizer.ggml.pre", repr(name))
    cuts = [(each, each.find(" ", 1)) for each in file.texts("tokenizer.ggml.merges")]
    merges = [(merge[:cut], merge[cut + 1 :]) for merge, cut in cuts]
    # Unused ids fill a matrix up, and are no text of the model's own tokenizer.
    unused = {*vocabulary.of_kind(UNUSED)}
    ids = {token: index for token, index in vocabulary.ids.items() if token not in unused}
    backend = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=split.whole))
    backend.normalizer = split.normalizer()
    backend.pre_tokenizer = split.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend, split.bos


def _sentencepiece(vocabulary: Vocabulary, unknown: str | None) -> Tokenizer:
    """SentencePiece's BPE, as tokenizer.json has it: bytes for what no token spells."""
    if unknown is None and (found := vocabulary.of_kind(UNKNOWN)):
        unknown = found[0]
    model = models.BPE(
        vocab=vocabulary.ids,
        merges=_merges_by_score(vocabulary),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    prefix = vocabulary.file.flag("tokenizer.ggml.add_space_prefix", True)
    spaces: list[Any] = [normalizers.Replace(" ", SPACE)]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE)] * prefix + spaces)
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * prefix)
    return backend


def _merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, the best first; files have no merges of this kind."""
    scores, kinds = vocabulary.scores(), vocabulary.kinds
    found = []
    for index, token in enumerate(vocabulary.tokens):
        if kinds[index] != NORMAL:
            continue
        for cut in range(1, len(token)):
            left, right = vocabulary.ids.get(token[:cut]), vocabulary.ids.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[index], left, right))
    found.sort()
    return [(vocabulary.tokens[left], vocabulary.tokens[right]) for _, left, right in found]


def _add_special(backend: Tokenizer, vocabulary: Vocabulary) -> None:
    """Control tokens, and those that are found in a text before it is cut into words."""
    special, plain = vocabulary.of_kind(CONTROL, UNKNOWN), vocabulary.of_kind(USER_DEFINED)
    special += filter(ENDS.fullmatch, plain)
    backend.add_special_tokens([AddedToken(each, normalized=False) for each in special])
    plain = [each for each in plain if not ENDS.fullmatch(each)]
    backend.add_tokens([AddedToken(each, normalized=False) for each in plain])


def _frame(backend: Tokenizer, vocabulary: Vocabulary, bos: bool, byte_level: bool) -> None:
    """What stands before a text."""
    steps: list[Any] = [processors.ByteLevel(trim_offsets=False)] if byte_level else []
    token = vocabulary.special("bos")
    if bos and token is not None:
        pair = f"{token}:0 $A:0"
        steps.append(
            processors.TemplateProcessing(
                single=pair,
                pair=f"{pair} {token}:1 $B:1",
                special_tokens=[(token, vocabulary.ids[token])],
            )
        )
    if steps:
        backend.post_processor = processors.Sequence(steps)


def _template(file: GgufFile) -> Any:
    """The chat template: one, or several by name."""
    default = file.text("tokenizer.chat_template")
    named = {
        name: file.text(f"tokenizer.chat_template.{name}")
        for name in file.texts("tokenizer.chat_templates")
        if name != "default"
    }
    if not any(named.values()):
        return default
    return {name: text for name, text in ({"default": default} | named).items() if text}
