"""Confidence from logits on a CPU, beside plain PyTorch and beside the time to read the logits.

make bench, or: pytest bench/bench_topk_confidence.py --benchmark-only -s
"""

import statistics

import pytest
import torch

from bench.roofline import LARGE, interleaved, read_bandwidth, rotating
from marco_fast import ops
from marco_fast.ops import reference
from tests.compare import assert_close

TOP_K = 5
THREADS = 1  # one thread each: no team to start, the same for both sides
VOCAB = 151936


def peer_topk(logits: torch.Tensor, token_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What is written by hand: float32 logprobs of the whole row, then top-k and gather.

    For bf16 and f16 the conversion is fused into log_softmax (dtype=float32) or made before it;
    both give float32 results, and the faster one is timed.
    """
    logprobs = torch.log_softmax(logits, -1, dtype=torch.float32)
    return scores_of(logprobs, token_ids)


def peer_float(logits: torch.Tensor, token_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return scores_of(torch.log_softmax(logits.float(), -1), token_ids)


def scores_of(logprobs: torch.Tensor, token_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    topk_logprobs, topk_ids = logprobs.topk(TOP_K)
    token_logprobs = logprobs.gather(1, token_ids[:, None])[:, 0]
    confidence = token_logprobs.exp() / topk_logprobs.exp().sum(-1)
    return confidence, token_logprobs, topk_logprobs, topk_ids


def peer_topk_first(logits: torch.Tensor, token_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Top-k on the logits, then one logsumexp: no [B, V] logprobs are stored."""
    wide = logits.float()
    values, ids = wide.topk(TOP_K)
    lse = wide.logsumexp(-1)
    token_logprobs = wide.gather(1, token_ids[:, None])[:, 0] - lse
    topk_logprobs = values - lse[:, None]
    return token_logprobs.exp() / topk_logprobs.exp().sum(-1), token_logprobs, topk_logprobs, ids


def peer_sample(logits: torch.Tensor, temperature: float, top_p: float) -> tuple[torch.Tensor, ...]:
    """Sampling by hand: top-p by a sort where it is on, multinomial, then the scores."""
    probs = (logits.float() / temperature).softmax(-1)
    if top_p < 1:
        ranked, ids = probs.sort(-1, descending=True)
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0.0)
        tokens = ids.gather(1, ranked.multinomial(1))[:, 0]
    else:
        tokens = probs.multinomial(1)[:, 0]
    return peer_topk(logits, tokens)


def checked(logits: torch.Tensor, got) -> None:
    """Refuses to time a wrong result."""
    ids = got.token_ids.long() if hasattr(got, "token_ids") else torch.zeros(len(logits)).long()
    want = reference.topk_confidence(logits[:2], ids[:2])
    assert_close(got.confidence[:2], want.confidence)
    assert_close(got.topk_logprobs[:2], want.topk_logprobs, atol=1e-6)
    assert torch.equal(got.topk_ids[:2], want.topk_ids)


def run(benchmark, ours, peers: dict, nbytes: int) -> None:
    """Times `ours` against each peer in turns; records medians, the best peer and the floor."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        mine, *theirs = interleaved(ours, *peers.values())
        bandwidth = read_bandwidth(THREADS)
        benchmark.pedantic(ours, rounds=5, warmup_rounds=1)
    finally:
        torch.set_num_threads(before)
    median = statistics.median(mine)
    medians = {name: statistics.median(x) for name, x in zip(peers, theirs, strict=True)}
    best = min(medians, key=medians.__getitem__)
    floor = nbytes / bandwidth
    benchmark.extra_info |= {
        "us": median * 1e6,
        "us_quartiles": [q * 1e6 for q in statistics.quantiles(mine, n=4)],
        "peer": best,
        "peer_us": medians[best] * 1e6,
        "peers_us": {name: x * 1e6 for name, x in medians.items()},
        "ratio": medians[best] / median,
        "floor_us": floor * 1e6,
        "floor_share": floor / median,
        "read_gb_s": bandwidth / 1e9,
    }
    print(
        f"\n{benchmark.name}: {median * 1e6:.0f} us; {best} {medians[best] * 1e6:.0f} us "
        f"({medians[best] / median:.1f}x); floor {floor * 1e6:.0f} us ({floor / median:.0%})"
    )


def logits_in_turn(rows: int, dtype: torch.dtype):
    """The next logits to score; small ones in one buffer, as the LM head has just written them.

    Logits of 16 MB and more leave the caches before they are read: those rotate.
    """
    rng = torch.Generator().manual_seed(0)

    def make(_: int) -> torch.Tensor:
        return (3 * torch.randn(rows, VOCAB, generator=rng)).to(dtype)

    nbytes = rows * VOCAB * dtype.itemsize
    return rotating(make, nbytes, total=LARGE if nbytes >= 16 * 2**20 else nbytes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8, 64])
def test_topk_confidence(benchmark, rows, dtype):
    logits, ids = logits_in_turn(rows, dtype), torch.zeros(rows, dtype=torch.int64)
    checked(x := logits(), ops.topk_confidence(x, ids))
    peers = {"torch log_softmax + topk + gather": peer_topk, "torch topk first": peer_topk_first}
    if dtype != torch.float32:
        peers["torch float, log_softmax + topk + gather"] = peer_float
    calls = {name: lambda f=f: f(logits(), ids) for name, f in peers.items()}
    run(
        benchmark,
        lambda: ops.topk_confidence(logits(), ids),
        calls,
        rows * VOCAB * dtype.itemsize,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.95)])
def test_sample_confidence(benchmark, temperature, top_p, rows, dtype):
    logits = logits_in_turn(rows, dtype)
    keys = {"seeds": torch.arange(rows), "positions": torch.arange(rows)}

    def ours():
        return ops.sample_confidence(logits(), temperature=temperature, top_p=top_p, **keys)

    checked(x := logits(), ops.sample_confidence(x, temperature=temperature, top_p=top_p, **keys))
    peers = {"torch softmax + multinomial": lambda: peer_sample(logits(), temperature, top_p)}
    run(benchmark, ours, peers, rows * VOCAB * dtype.itemsize)


@pytest.mark.parametrize("rows", [1, 16, 64])
def test_decode_step_of_a_small_model(benchmark, rows):
    """V = 1000: what a call costs when there is next to nothing to read."""
    logits = torch.randn(rows, 1000, generator=torch.Generator().manual_seed(0)) * 3
    keys = {"seeds": torch.arange(rows), "positions": torch.arange(rows)}

    def ours():
        return ops.sample_confidence(logits, temperature=0.7, **keys)

    checked(logits, ours())
    peers = {"torch softmax + multinomial": lambda: peer_sample(logits, 0.7, 1.0)}
    run(benchmark, ours, peers, logits.nbytes)
