"""Top-k confidence, draws, and the LM head fused with both."""
