"""Tree attention over a paged KV cache, and its plan."""
