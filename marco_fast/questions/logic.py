"""The logic test: orderings of people or animals, and syllogisms about kinds of things."""

import random

from marco_fast.questions.draft import Accept, Draft
from marco_fast.questions.orderings import ordering
from marco_fast.questions.syllogisms import syllogism


def logic(level: int, rng: random.Random, accept: Accept, language: str) -> Draft:
    """A question about an order of level + 2 names, or about a chain of up to `level` kinds."""
    if rng.random() < 0.5:
        return ordering(level + 2, rng, accept, language)
    return syllogism(level, rng, accept, language)
