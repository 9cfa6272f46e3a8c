"""How byte-level BPE vocabularies cut a text into words: the rule that a GGUF file only names.

The name is llama.cpp's (tokenizer.ggml.pre); the rule is that of the models' own tokenizer.json.
"""

from typing import NamedTuple

from tokenizers import Regex, normalizers, pre_tokenizers

__all__ = ["SPLITS", "Split"]

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
WORDS = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASES = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s"
    rf"|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}"
)


class Split(NamedTuple):
    """A rule.

    Attributes:
        patterns: each cuts what those before it have left. whole: whether a word that is a token
            stays one, whatever the merges say. bos: whether a text begins with the BOS token where
            the file does not say so. nfc: whether characters are composed first.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    bos: bool = False
    nfc: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        cuts = [pre_tokenizers.Split(Regex(each), "isolated") for each in self.patterns]
        spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*cuts, spelled])

    def normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.NFC() if self.nfc else None


RULES = {
    "default": Split((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2 phi-2 mpt olmo jais trillion gigachat exaone4 a.x-4.0 mellum": Split((GPT2,)),
    "smollm starcoder refact command-r codeshell exaone minerva-7b": Split((r"\p{N}", GPT2)),
    "falcon": Split((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0": Split(
        (WORDS % r"\p{N}{1,3}",), whole=True, bos=True
    ),
    "dbrx smaug-bpe": Split((WORDS % r"\p{N}{1,3}",)),
    "qwen2 deepseek-r1-qwen megrez kormo": Split((WORDS % r"\p{N}",), nfc=True),
    "stablelm2 hunyuan": Split((WORDS % r"\p{N}",)),
    "tekken": Split((CASES % ("", "", r"\p{N}"),), whole=True, bos=True),
    "gpt-4o llama4 kanana2": Split(
        (CASES % (f"{CONTRACTIONS}?", f"{CONTRACTIONS}?", r"\p{N}{1,3}"),)
    ),
    "deepseek-coder": Split(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    "deepseek-v3": Split((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK)),
}
SPLITS = {name: split for names, split in RULES.items() for name in names.split()}
