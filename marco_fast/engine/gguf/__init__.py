"""GGUF files: header, blocks of quantised weights, and the model and tokenizer in them."""
