"""A search written down, for every engine to replay: which nodes are expanded, below which.

python -m bench.engines.schedule --vocab 8192 --prompt-tokens 200 --branches 8 --rounds 4 > FILE
"""

import argparse
import json
import random
from collections.abc import Sequence
from typing import Any

__all__ = ["make_schedule"]

CHILDREN = 4  # children of a node that was picked as a parent


def make_schedule(
    prompt: Sequence[int],
    *,
    branches: int,
    rounds: int,
    tokens: int,
    seed: int = 0,
    temperature: float = 0.7,
    top_p: float = 1.0,
    top_k: int = 5,
) -> dict[str, Any]:
    """A schedule that grows as a tree search does: a few good nodes get several children each.

    The first round expands the prompt `branches` times. Each later round picks a quarter as many
    parents among the nodes of the latest two rounds and expands each four times, so depth grows,
    paths of a round differ in length and most of their tokens are shared. The same arguments give
    the same schedule.

    Args:
        prompt: token ids of node 0.
        branches: expansions of each round, at least 1.
        rounds: at least 1.
        tokens: sampled by each expansion, at least 1.
        seed: of the choice of parents.
        temperature, top_p: how tokens are sampled.
        top_k: how many of each position's best logprobs are wanted.

    Returns:
        What protocol.Schedule.load reads, ready for json.dump.

    Raises:
        ValueError: an empty prompt, or a count below 1.
    """
    if not prompt or min(branches, rounds, tokens) < 1:
        raise ValueError(
            "expected a prompt, branches, rounds and tokens, "
            f"got {len(prompt)}, {branches}, {rounds} and {tokens}"
        )
    chance = random.Random(seed)
    grown: list[list[int]] = [[0]]
    planned = []
    for number in range(rounds):
        parents = [0] * branches if number == 0 else _parents(chance, grown, branches)
        begin = 1 + number * branches
        grown.append(list(range(begin, begin + branches)))
        planned.append(
            [
                {"node": node, "parent": parent, "tokens": tokens}
                for node, parent in zip(grown[-1], parents, strict=True)
            ]
        )
    return {
        "prompt": list(prompt),
        "rounds": planned,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
    }


def _parents(chance: random.Random, grown: list[list[int]], branches: int) -> list[int]:
    """Parents of one round's expansions, equal ones side by side; the root is not picked again."""
    candidates = [node for nodes in grown[-2:] for node in nodes if node != 0]
    picked = chance.sample(candidates, min(len(candidates), -(-branches // CHILDREN)))
    return sorted(picked[i % len(picked)] for i in range(branches))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--vocab", type=int, required=True, help="random prompt ids are below it")
    parser.add_argument("--branches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    prompt = [chance.randrange(3, options.vocab) for _ in range(options.prompt_tokens)]
    schedule = make_schedule(
        prompt,
        branches=options.branches,
        rounds=options.rounds,
        tokens=options.tokens,
        seed=options.seed,
    )
    print(json.dumps(schedule))


if __name__ == "__main__":
    main()
