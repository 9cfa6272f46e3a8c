"""A language model that decodes many branches of many trees in one batch."""
