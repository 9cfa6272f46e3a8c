"""The driver with a null model, and a whole search against transformers' generate.

make bench, or: pytest bench/engines/bench_search.py --benchmark-only -s
"""

import statistics
import time
from pathlib import Path

import pytest
import torch
import transformers

import marco_fast
from bench.common.roofline import read_bandwidth
from marco_fast import Engine, SearchConfig, solve
from marco_fast.search.marco import as_messages
from marco_fast.search.mcts import Search

NANO = Path(marco_fast.__file__).parent / "models" / "nano-marco"
QUESTION = "How many times does the letter r occur in strawberry?"
DRIVER_TARGET = 25e-6  # seconds per expansion
TOKENS = [1] * 32
LOGPROBS = [-0.1] * 32


def drive(expansions: int, rollout: int) -> None:
    """Answer every ticket at once with a mini-step of 32 tokens, and with `rollout` more."""
    search = Search("q", SearchConfig(expansions=expansions))
    count = 0
    while tickets := search.ask(16):
        for ticket in tickets:
            for more in [True] * rollout + [False]:
                count += 1
                search.grow(
                    ticket, TOKENS, LOGPROBS, [(count * 7919 % 1000) / 1000] * 32, more=more
                )
            search.tell(ticket)
    assert search.expansions == expansions


@pytest.mark.parametrize("expansions", [64, 1000, 10000])
def test_driver(benchmark, expansions):
    """Selection, expansion and backup alone: no model, no tensor."""
    benchmark.pedantic(drive, args=(expansions, 0), rounds=5, warmup_rounds=1)
    each = benchmark.stats.stats.median / expansions
    benchmark.extra_info |= {"us_per_expansion": each * 1e6, "target_us": DRIVER_TARGET * 1e6}
    print(f"\ndriver, {expansions} expansions: {each * 1e6:.1f} us per expansion (target 25)")


@pytest.fixture(scope="module")
def engine():
    with Engine.from_pretrained("nano-marco") as made:
        yield made


def generate(model, prompt: torch.Tensor, branches: int, tokens: int) -> None:
    """One sample per branch, with its logits: what a search written by hand would ask for."""
    out = model.generate(
        prompt,
        do_sample=True,
        temperature=0.7,
        top_p=0.95,
        num_return_sequences=branches,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert out.sequences.shape == (branches, prompt.shape[1] + tokens)


@pytest.mark.parametrize("branches", [1, 4, 16, 64])
def test_solve_against_generate(benchmark, engine, branches):
    """Tokens/s of a whole search, and of generate making as many tokens, in turns."""
    config = SearchConfig(
        expansions=2 * branches, children=2 * branches, parallel=branches, temperature=0.7, seed=1
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval()
    prompt = torch.tensor([engine.prompt_token_ids(as_messages(QUESTION), "")])
    stats = solve(QUESTION, engine, config).stats
    each = max(1, round(stats.tokens / branches))
    generate(model, prompt, branches, each)
    ours, theirs = [], []

    def both() -> None:
        begin = time.perf_counter()
        stats = solve(QUESTION, engine, config).stats
        middle = time.perf_counter()
        generate(model, prompt, branches, each)
        ours.append(stats.tokens / (middle - begin))
        theirs.append(branches * each / (time.perf_counter() - middle))

    benchmark.pedantic(both, rounds=3)
    mine, peer = statistics.median(ours), statistics.median(theirs)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    floor = branches / (weights / read_bandwidth(torch.get_num_threads()))
    benchmark.extra_info |= {
        "tokens_per_second": mine,
        "generate_tokens_per_second": peer,
        "ratio": mine / peer,
        "floor_tokens_per_second": floor,
        "expansions_per_second": mine / stats.tokens * stats.expansions,
    }
    print(
        f"\n{branches} branches: solve {mine:.0f} tokens/s, generate {peer:.0f} tokens/s, "
        f"ratio {mine / peer:.2f}; weights read once per step would allow {floor:.0f}"
    )
