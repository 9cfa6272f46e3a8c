"""What bytes each token stands for, so that a path's text grows by concatenation.

Decoding token by token with a tokenizer's decode() is wrong where a character spans tokens; the
bytes of the tokens are exact.
"""

import json
import random
import re
from collections.abc import Collection
from functools import lru_cache
from itertools import islice
from typing import Any

from marco_fast.errors import ModelError

__all__ = ["token_bytes"]

# Steps of a decoder behind which tokens are one text.
FUSING = ("ByteLevel", "ByteFallback", "Fuse")
WORD = re.compile(rb" ?[A-Za-z]+ ?")
TAGS = ("<think>", "</think>", "<Thought>", "</Thought>", "<Output>", "</Output>")
SAMPLES = 40  # sequences that are decoded both ways


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The UTF-8 bytes of every token id inside a text; special tokens stand for nothing.

    Some tokenizers have special tokens for the tags of a reply, which are its text (TAGS). Joined,
    the bytes are what the tokenizer decodes, but for those tags, and for white space that some
    tokenizers drop at the beginning of a text (SentencePiece's, WordPiece) or at its end (BPE with
    "</w>").

    Args:
        tokenizer: a transformers tokenizer backed by the tokenizers library.

    Returns:
        A list indexed by token id, as long as the tokenizer's largest id + 1.

    Raises:
        ModelError: its decoder makes of a token what its neighbours say (as CTC does).
    """
    backend, added = tokenizer.backend_tokenizer, tokenizer.added_tokens_decoder
    ids = sorted(each for each in tokenizer.get_vocab().values() if not _is_silent(added.get(each)))
    tokens: list[str] = [backend.id_to_token(each) for each in ids]  # as decode() takes them
    decoder = backend.decoder
    steps = [] if decoder is None else _steps(json.loads(decoder.__getstate__()))
    kinds = [each["type"] for each in steps]
    if not _is_token_by_token(steps):
        raise _refusal(kinds)
    if "ByteLevel" in kinds:
        pairs = zip(ids, tokens, strict=True)
        pieces = [each.encode() if at in added else _byte_level(each) for at, each in pairs]
    else:
        pieces = _decoded(tokens, decoder, kinds)
    table = [b""] * (max([*ids, *added], default=-1) + 1)
    for index, piece in zip(ids, pieces, strict=True):
        table[index] = piece
    _check(tokenizer, table, kinds)
    return table


def _is_silent(added: Any) -> bool:
    """Whether an added token stands for no text."""
    return added is not None and bool(added.special) and added.content not in TAGS


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a decoder, as tokenizer.json writes them, one after the other."""
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for each in decoder["decoders"] for step in _steps(each)]


def _is_token_by_token(steps: list[dict[str, Any]]) -> bool:
    """Whether the text is the tokens' own texts, joined; its two ends aside."""
    fused = False
    for step in steps:
        kind = step["type"]
        if kind == "CTC" or (kind == "ByteLevel" and step is not steps[0]):
            return False
        if fused and kind not in ("Fuse", "Strip"):
            character = kind == "Replace" and len(step["pattern"].get("String", "")) == 1
            if not character or "ByteLevel" in (each["type"] for each in steps):
                return False
        fused = fused or kind in FUSING
    return True


def _refusal(kinds: list[str]) -> ModelError:
    names = " + ".join(kinds) or "none"
    return ModelError(f"expected a tokenizer whose decoder spells each token alike, got {names}")


def _byte_level(token: str) -> bytes:
    try:
        return bytes(map(_byte_of_character().__getitem__, token))
    except KeyError:
        return token.encode()


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 for itself, U+0100 and up for the rest."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printable)
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return table


def _decoded(tokens: list[str], decoder: Any, kinds: Collection[str]) -> list[bytes]:
    """What a decoder makes of tokens inside a text: all at once, a mark between each two."""
    taken = set().union(*tokens)
    mark = next(chr(each) for each in range(0x10FFFF, 0, -1) if chr(each) not in taken)
    decode = " ".join if decoder is None else decoder.decode
    between = decode([mark, mark]).removeprefix(mark)
    whole = decode([mark, *(each for token in tokens for each in (token, mark))])
    pieces = whole.removeprefix(mark).split(between)
    if len(pieces) != len(tokens) + 1:
        raise _refusal([*kinds])
    if "ByteFallback" not in kinds:
        return [each.encode() for each in pieces[:-1]]
    return [
        bytes([int(token[3:5], 16)])
        if re.fullmatch("<0x[0-9A-Fa-f]{2}>", token)
        else piece.encode()
        for token, piece in zip(tokens, pieces, strict=False)
    ]


def _check(tokenizer: Any, table: list[bytes], kinds: list[str]) -> None:
    """Decodes some sequences both ways, the ends of each by tokens that are words."""
    added = tokenizer.added_tokens_decoder
    said = [
        at for at, piece in enumerate(table) if piece and not (at in added and added[at].special)
    ]
    if "ByteLevel" in kinds:  # which reads added tokens as bytes, too, where it can
        said = [index for index in said if index not in added]
    if "ByteFallback" in kinds:  # single bytes that are no text have spellings of their own
        said = [index for index in said if not (len(table[index]) == 1 and table[index] > b"\x7f")]
    words = list(islice((each for each in said if WORD.fullmatch(table[each])), 1))
    draw = random.Random(0)
    for _ in range(SAMPLES if said else 0):
        drawn = draw.choices(said, k=6)
        ids = [*words, *drawn, drawn[-1], *words]
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        joined = b"".join(table[each] for each in ids).decode(errors="replace")
        if text.strip() != joined.strip():
            raise _refusal(kinds)
