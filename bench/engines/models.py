"""Randomly initialised Qwen2 models of two sizes, as folders that every peer can read.

python -m bench.engines.models 80m|0.5b DIR

Speed does not depend on the values of the weights, so nothing has to be downloaded.
"""

import argparse
from pathlib import Path

__all__ = ["SIZES", "make_model"]

SIZES = {
    "80m": {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 2048,
        "vocab_size": 8192,
    },
    "0.5b": {
        "num_hidden_layers": 24,
        "hidden_size": 896,
        "num_attention_heads": 14,
        "intermediate_size": 4864,
        "vocab_size": 151936,
    },
}


def make_model(size: str, folder: Path, *, seed: int = 0) -> None:
    """Write a float32 model with tied embeddings, 2 KV heads and a tokenizer of one word per id.

    Args:
        size: a key of SIZES.
        folder: made if it is not there; files of the same names are replaced.
        seed: of the weights.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        **SIZES[size],
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        dtype="float32",
    )
    torch.manual_seed(seed)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    _tokenizer(config.vocab_size).save_pretrained(folder)


def _tokenizer(words: int):
    """A tokenizer of numbered words: some engines need one, although all are given ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<unk>", "<eos>"]
    vocabulary = {word: i for i, word in enumerate(names + [f"w{i}" for i in range(3, words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    make_model(options.size, options.folder)
    size = (options.folder / "model.safetensors").stat().st_size
    print(f"{options.folder}: {size / 1e6:.0f} MB of weights")


if __name__ == "__main__":
    main()
