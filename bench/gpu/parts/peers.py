"""Our kernels beside the best alternatives, in turns; one row per peer and shape.

A peer that is not installed has no row: the part "environment" lists what is installed. Each part
has a process of its own, since some peers cannot be captured into a CUDA graph, and the attempt
breaks PyTorch's generator.
"""

import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

import marco_fast as mf
from bench.common.trees import HEADS, PAGE, Tree, gathered, private_attention, tables
from bench.gpu.machine import Case, Machine
from bench.gpu.parts.inputs import (
    BACKEND,
    AttentionInputs,
    forests,
    lm_head_inputs,
    random_logits,
)
from bench.gpu.parts.times import (
    FILTERS,
    HEAD,
    VOCAB,
    attention_calls,
    attention_work,
    draw_options,
    lm_head_shapes,
    told,
)
from bench.operations import by_hand

Calls = Sequence[Callable[[], object]]
MOST_BYTES = 24e9  # bytes of private copies of paths


def beside(machine: Machine, ours: Calls, theirs: Callable[[], Calls], floor: float | None) -> dict:
    """Our time and the peer's, and how many times as long the peer takes."""
    if machine.recording:
        ours[0]()
        return {}
    made = theirs()
    made[0]()
    machine.wait()
    mine, peer = machine.time(ours, made)
    return {
        **mine.summary(),
        "peer_us": peer.median * 1e6,
        "peer_captured": peer.captured,
        "ratio": peer.median / mine.median,
        "floor_us": floor,
    }


def there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def confidence(machine: Machine) -> Iterator[Case]:
    """topk_confidence, against PyTorch by hand and compiled."""
    peers = {"by hand": by_hand.scores, "top-k first": by_hand.scores_topk_first}
    batches = (2,) if machine.dry else (8, 64, 256)
    vocab_size = 4112 if machine.dry else VOCAB
    if machine.mode == "gpu":
        peers["compiled"] = None
    for name, batch in itertools.product(peers, batches):
        case = f"topk_confidence {batch} x {vocab_size} bfloat16 / {name}"
        yield Case(case, partial(peer_confidence, machine, batch, vocab_size, peers[name]))


def peer_confidence(machine: Machine, batch: int, vocab_size: int, peer: Callable | None) -> dict:
    nbytes = 2 * batch * vocab_size
    inputs = machine.rotating(lambda: random_logits(machine, batch, vocab_size), nbytes)
    ids = torch.zeros(batch, dtype=torch.int64, device=machine.device)
    if peer is None:
        # After 8 shapes of one function dynamo silently runs it uncompiled.
        torch._dynamo.reset()
        peer = torch.compile(by_hand.scores_topk_first, dynamic=False)
    return beside(
        machine,
        [partial(mf.topk_confidence, x, ids, backend=BACKEND) for x in inputs],
        lambda: [partial(peer, x, ids) for x in inputs],
        machine.floor_us(nbytes),
    )


def sample_by_hand(logits: torch.Tensor, temperature: float = 1.0, top_p: float = 1.0) -> tuple:
    return by_hand.scores_topk_first(logits, by_hand.sample(logits, temperature, top_p))


def sample_with_flashinfer(
    logits: torch.Tensor, temperature: float = 1.0, top_p: float = 1.0
) -> tuple:
    """FlashInfer's sampler, which gives no logprobs, then the scores."""
    from flashinfer import sampling

    probs = (logits.float() / temperature).softmax(-1)
    if top_p < 1:
        tokens = sampling.top_p_sampling_from_probs(probs, top_p)
    else:
        tokens = sampling.sampling_from_probs(probs)
    return by_hand.scores_topk_first(logits, tokens.long())


def samplers() -> dict[str, Callable]:
    found = {"by hand": sample_by_hand}
    if there("flashinfer"):
        found["flashinfer"] = sample_with_flashinfer
    return found


def sampling(machine: Machine) -> Iterator[Case]:
    """sample_confidence, against PyTorch by hand and FlashInfer."""
    batches = (2,) if machine.dry else (8, 64, 256)
    vocab_size = 4112 if machine.dry else VOCAB
    for (name, peer), batch in itertools.product(samplers().items(), batches):
        for options in (FILTERS, {"temperature": 1.0}):
            case = f"sample_confidence {batch} x {vocab_size} bfloat16 {told(options)} / {name}"
            yield Case(case, partial(peer_sampling, machine, batch, vocab_size, options, peer))


def peer_sampling(
    machine: Machine, batch: int, vocab_size: int, options: dict, peer: Callable
) -> dict:
    nbytes = 2 * batch * vocab_size
    inputs = machine.rotating(lambda: random_logits(machine, batch, vocab_size), nbytes)
    drawn = draw_options(machine, batch, options)
    return beside(
        machine,
        [partial(mf.sample_confidence, x, **drawn) for x in inputs],
        lambda: [partial(peer, x, **options) for x in inputs],
        machine.floor_us(nbytes),
    )


def lm_head(machine: Machine) -> Iterator[Case]:
    """lm_head_confidence, against a library's product followed by each sampler."""
    peers: dict[str, Callable] = {"product, sample_confidence": product_then_ours}
    peers |= {f"product, {name}": product_then(each) for name, each in samplers().items()}
    if there("cut_cross_entropy"):
        peers["cut_cross_entropy, one logprob"] = cut_cross_entropy
    if there("liger_kernel"):
        peers["liger, one logprob"] = liger
    shapes = [s for s in lm_head_shapes(machine) if machine.dry or s[1:] == HEAD]
    for (name, peer), (batch, size, vocab_size) in itertools.product(peers.items(), shapes):
        case = f"lm_head_confidence {batch} x {size} x {vocab_size} bfloat16 / {name}"
        yield Case(case, partial(peer_lm_head, machine, batch, size, vocab_size, peer))


def peer_lm_head(machine: Machine, batch: int, size: int, vocab_size: int, peer: Callable) -> dict:
    nbytes = 2 * vocab_size * size
    inputs = machine.rotating(lambda: lm_head_inputs(machine, batch, vocab_size, size), nbytes)
    drawn = draw_options(machine, batch, FILTERS)
    return beside(
        machine,
        [partial(mf.lm_head_confidence, *each, **drawn) for each in inputs],
        lambda: [partial(peer, *each, drawn) for each in inputs],
        machine.floor_us(nbytes, 2.0 * batch * size * vocab_size),
    )


def product_then_ours(hidden: torch.Tensor, weight: torch.Tensor, drawn: dict) -> tuple:
    """The library's product in bfloat16, as engines store it, then our sampler."""
    return mf.sample_confidence(hidden @ weight.T, **drawn)


def product_then(sampler: Callable) -> Callable:
    return lambda hidden, weight, drawn: sampler(hidden @ weight.T, **FILTERS)


def cut_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, drawn: dict) -> torch.Tensor:
    """The logprob of a given token alone, without a draw or a top-k."""
    from cut_cross_entropy import linear_cross_entropy

    targets = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    return linear_cross_entropy(hidden, weight, targets, reduction="none")


def liger(hidden: torch.Tensor, weight: torch.Tensor, drawn: dict) -> torch.Tensor:
    """The same by Liger, which stores the logits in parts."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    targets = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    return LigerFusedLinearCrossEntropyLoss(reduction="none")(weight, hidden, targets)


def attention(machine: Machine) -> Iterator[Case]:
    """tree_attention, against SDPA and FlashInfer on private KV; gathering it is not timed."""
    peers = {"SDPA on private KV": private_attention}
    if there("flashinfer"):
        peers["FlashInfer on private KV"] = flashinfer_decode
    model = "nano-marco" if machine.dry else "qwen2-7b"
    for (name, peer), (forest, tree) in itertools.product(peers.items(), forests(machine).items()):
        case = f"tree_attention {model} {forest} / {name}"
        yield Case(case, partial(peer_attention, machine, model, tree, peer))


def peer_attention(machine: Machine, model: str, tree: Tree, peer: Callable) -> dict:
    _, num_kv_heads, dim = HEADS[model]
    seen = sum(tree.lens[n] for leaf in tree.leaves for n in tree.path(leaf))
    private_bytes = 4.0 * seen * num_kv_heads * dim
    if private_bytes > MOST_BYTES:
        return {"skipped": f"private copies of the paths would take {private_bytes / 1e9:.0f} GB"}
    most = max(1, int(MOST_BYTES // private_bytes))
    sets, ours = attention_calls(machine, model, tree, most=most)
    plan = sets[0].plan
    nbytes, flop, rho = attention_work(model, plan)
    row = beside(
        machine,
        ours,
        lambda: [peer(each.q, *private_copies(each, tree)) for each in sets],
        machine.floor_us(nbytes, flop),
    )
    # SDPA takes one call per length of a path.
    return row | {"rho": rho, "path_lengths": len({*plan.path_lens.tolist()})}


def private_copies(inputs: AttentionInputs, tree: Tree) -> tuple[list, list]:
    table, _ = tables(tree)
    return gathered(inputs.k_cache, tree, table), gathered(inputs.v_cache, tree, table)


def flashinfer_decode(q: torch.Tensor, k: list, v: list) -> Callable[[], object]:
    """FlashInfer's paged decode over private pages, planned once."""
    import flashinfer

    lens = [rows.shape[1] for rows in k]
    counts = [-(-n // PAGE) for n in lens]
    heads, dim = k[0].shape[0], k[0].shape[2]
    caches = torch.zeros(2, sum(counts), heads, PAGE, dim, dtype=q.dtype, device=q.device)
    begin = 0
    for i, count in enumerate(counts):
        for cache, rows in zip(caches, (k[i], v[i]), strict=True):
            padded = torch.nn.functional.pad(rows, (0, 0, 0, count * PAGE - lens[i]))
            cache[begin : begin + count] = padded.unflatten(1, (count, PAGE)).transpose(0, 1)
        begin += count
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(128 * 2**20, dtype=torch.uint8, device=q.device), "HND", use_tensor_cores=True
    )
    ends = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)
    last = torch.tensor([(n - 1) % PAGE + 1 for n in lens], dtype=torch.int32)
    wrapper.plan(
        ends, torch.arange(sum(counts), dtype=torch.int32), last, q.shape[1], heads, dim, PAGE,
        q_data_type=q.dtype, kv_data_type=q.dtype,
    )  # fmt: skip
    return lambda: wrapper.run(q, (caches[0], caches[1]))
