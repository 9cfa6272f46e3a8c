"""What bytes each token stands for, so that a path's text grows by concatenation.

Decoding token by token with a tokenizer's decode() is wrong where a character spans tokens; the
bytes of the tokens are exact.
"""

import json
import re
from functools import lru_cache
from typing import Any

__all__ = ["token_bytes"]


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The UTF-8 bytes of every token id; special tokens stand for nothing.

    Args:
        tokenizer: a transformers tokenizer backed by the tokenizers library (byte-level BPE as in
            Qwen and Llama 3, or SentencePiece-like with byte fallback as in Mistral).

    Returns:
        A list indexed by token id, as long as the tokenizer's largest id + 1.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    to_bytes = _byte_level if _is_byte_level(tokenizer) else _sentencepiece
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    added = tokenizer.added_tokens_decoder
    for token, index in vocabulary.items():
        if index in added:
            table[index] = b"" if added[index].special else token.encode()
        else:
            table[index] = to_bytes(token)
    return table


def _is_byte_level(tokenizer: Any) -> bool:
    decoder = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
    return '"ByteLevel"' in json.dumps(decoder)


def _byte_level(token: str) -> bytes:
    table = _byte_of_character()
    if any(character not in table for character in token):
        return token.encode()
    return bytes(table[character] for character in token)


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 for itself, U+0100 and up for the rest."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printable)
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return table


def _sentencepiece(token: str) -> bytes:
    fallback = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)
    if fallback:
        return bytes([int(fallback.group(1), 16)])
    return token.replace("\u2581", " ").encode()
