"""Loading a model: what is read, what is refused and why, how long its paths may be."""
