"""Loops: a path whose last tokens repeat one run of a few tokens says nothing new any more."""

from collections.abc import Sequence

__all__ = ["LOOP_TOKENS", "tokens_to_loop"]

LOOP_TOKENS = 64  # so many tokens that repeat one run are a loop
LOOP_RUN = 16  # tokens of the longest run that is looked for


def tokens_to_loop(token_ids: Sequence[int]) -> int:
    """How many tokens must follow at least before a path ends in a loop; 0 where it does already.

    So nobody has to look at every token: of a text that repeats nothing, one look in 48 tokens
    finds each loop with the token that completes it.

    Args:
        token_ids: the path's last LOOP_TOKENS tokens, or all of a shorter one.

    Returns:
        LOOP_TOKENS less the longest tail that repeats one run of 1 to LOOP_RUN tokens. A tail that
        is shorter than a run counts: what follows may repeat it.
    """
    count = len(token_ids)
    longest = min(count, LOOP_RUN)
    for run in range(1, min(LOOP_RUN, count - 1) + 1):
        at = count - 1
        while at >= run and token_ids[at] == token_ids[at - run]:
            at -= 1
        longest = max(longest, count - 1 - at + run)
        if longest >= LOOP_TOKENS:
            break
    return max(0, LOOP_TOKENS - longest)
