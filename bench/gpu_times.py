"""How long each operation takes on a GPU, beside its floor and its peers.

Every measurement rotates through inputs that do not fit into the L2 cache together and replays a
CUDA graph, so that neither launches nor a warm cache flatter a side. A row has the microseconds of
ours and of the floor; "peers" by name the same, or why one could not run.
"""

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

import marco_fast as mf
from bench import by_hand
from bench.gpu_checks import BACKEND, attention_inputs, lm_head_inputs
from bench.gpu_machine import Machine
from bench.trees import (
    HEADS,
    PAGE,
    Tree,
    gathered,
    many_small_nodes,
    private,
    private_attention,
    prompt_and_branches,
    tables,
)
from bench.trees import search as search_tree
from tests.draws import keyed

Calls = Sequence[Callable[[], object]]
Makers = dict[str, Callable[[], Calls]]


def measure(
    machine: Machine, case: str, ours: Calls, peers: Makers, nbytes: float, flop: float = 0.0
) -> dict:
    """One row: ours against every peer that can run, in turns."""
    made: dict[str, Calls] = {}
    row: dict[str, Any] = {"case": case, "peers": {}}
    for name, make in peers.items():
        try:
            made[name] = make()
            made[name][0]()
            machine.wait()
        except Exception as error:  # a peer that is absent or fails stands in the table as such
            row["peers"][name] = {"error": f"{type(error).__name__}: {error}"}
            made.pop(name, None)
    mine, *theirs = machine.time(ours, *made.values())
    row |= mine.summary()
    row["peers"] |= {name: t.summary() for name, t in zip(made, theirs, strict=True)}
    row["floor_us"] = machine.floor(nbytes, flop) * 1e6
    return row


def confidence_shapes(machine: Machine) -> list[tuple[int, int, torch.dtype]]:
    if machine.dry:
        return [(2, 5000, torch.bfloat16)]
    rows = (1, 8, 32, 64, 256, 1024)
    shapes = [(b, 151936, d) for b in rows for d in (torch.bfloat16, torch.float32)]
    return shapes + [(b, 128256, torch.bfloat16) for b in (1, 32, 256)]


def confidence(machine: Machine) -> list[dict]:
    """topk_confidence, against PyTorch by hand and compiled."""
    rows = []
    for batch, vocab, dtype in confidence_shapes(machine):
        if machine.out_of_time:
            break
        nbytes = batch * vocab * dtype.itemsize
        inputs = machine.rotating(lambda _: random_logits(machine, batch, vocab, dtype), nbytes)  # noqa: B023
        ids = torch.randint(0, vocab, (batch,), device=machine.device)

        def each(function: Callable, inputs: list = inputs, ids: torch.Tensor = ids) -> Calls:
            return [lambda x=x: function(x, ids) for x in inputs]

        ours = each(lambda x, t: mf.topk_confidence(x, t, backend=BACKEND))
        peers: Makers = {
            "by hand": lambda: each(by_hand.scores),
            "top-k first": lambda: each(by_hand.scores_topk_first),
        }
        if not machine.dry:
            peers["compiled"] = lambda: each(
                torch.compile(by_hand.scores_topk_first, dynamic=False)
            )
        case = f"topk_confidence {batch} x {vocab} {str(dtype)[6:]}"
        rows.append(measure(machine, case, ours, peers, nbytes))
    return rows


def random_logits(machine: Machine, batch: int, vocab: int, dtype: torch.dtype) -> torch.Tensor:
    return (3 * torch.randn(batch, vocab, device=machine.device)).to(dtype)


def sample_by_hand(logits: torch.Tensor, temperature: float, top_p: float) -> tuple:
    return by_hand.scores_topk_first(logits, by_hand.sample(logits, temperature, top_p))


def sample_with_flashinfer(logits: torch.Tensor, temperature: float, top_p: float) -> tuple:
    """FlashInfer's sampler, which gives no logprobs, then the scores."""
    from flashinfer import sampling

    probs = (logits.float() / temperature).softmax(-1)
    if top_p < 1:
        tokens = sampling.top_p_sampling_from_probs(probs, top_p)
    else:
        tokens = sampling.sampling_from_probs(probs)
    return by_hand.scores_topk_first(logits, tokens.long())


def sampling(machine: Machine) -> list[dict]:
    """sample_confidence, unfiltered and with top-p, with the path sums updated."""
    rows = []
    batches = (2,) if machine.dry else (1, 8, 32, 64, 256)
    vocab = 5000 if machine.dry else 151936
    for batch, (temperature, top_p) in itertools.product(batches, ((1.0, 1.0), (0.8, 0.95))):
        if machine.out_of_time:
            break
        nbytes = 2 * batch * vocab
        inputs = machine.rotating(
            lambda _: random_logits(machine, batch, vocab, torch.bfloat16),  # noqa: B023
            nbytes,
        )
        keys = {key: x.to(machine.device) for key, x in keyed(batch).items()}
        keys["path_sums"] = torch.zeros(batch, dtype=torch.int64, device=machine.device)
        keys["path_counts"] = torch.zeros(batch, dtype=torch.int32, device=machine.device)

        def ours(x: torch.Tensor, t: float = temperature, p: float = top_p, keys=keys) -> tuple:
            return mf.sample_confidence(x, temperature=t, top_p=p, **keys, backend=BACKEND)

        def each(
            function: Callable, inputs: list = inputs, t: float = temperature, p: float = top_p
        ) -> Calls:
            return [lambda x=x: function(x, t, p) for x in inputs]

        peers: Makers = {"by hand": lambda: each(sample_by_hand)}
        if importlib.util.find_spec("flashinfer"):
            peers["flashinfer"] = lambda: each(sample_with_flashinfer)
        case = f"sample_confidence {batch} x {vocab} bf16 T {temperature} top_p {top_p}"
        rows.append(measure(machine, case, each(ours), peers, nbytes))
    return rows


def lm_head_shapes(machine: Machine) -> list[tuple[int, int, int, float, float]]:
    """(rows, vocabulary, H, temperature, top_p)."""
    if machine.dry:
        return [(2, 300, 64, 0.7, 0.95)]
    heads = ((151936, 896), (152064, 3584), (128256, 2048), (128256, 3072))
    filters = ((1.0, 1.0), (0.7, 0.95))
    shapes = [(b, *heads[1], *f) for b in (1, 8, 16, 32, 64, 128, 256) for f in filters]
    return shapes + [(b, *head, *filters[1]) for head in heads if head != heads[1] for b in (1, 64)]


def lm_head(machine: Machine) -> list[dict]:
    """lm_head_confidence, against a library's product followed by the best samplers there are."""
    rows = []
    for batch, vocab, size, temperature, top_p in lm_head_shapes(machine):
        if machine.out_of_time:
            break
        nbytes = 2 * vocab * size
        inputs = machine.rotating(
            lambda _: lm_head_inputs(machine, batch, vocab, size, torch.bfloat16),  # noqa: B023
            nbytes,
        )
        keys = {key: x.to(machine.device) for key, x in keyed(batch).items()}
        options = {"temperature": temperature, "top_p": top_p}

        def each(function: Callable, inputs: list = inputs) -> Calls:
            return [lambda x=x: function(*x) for x in inputs]

        def then(sampler: Callable, t: float = temperature, p: float = top_p) -> Callable:
            """The library's product in bfloat16, as engines store it, then a sampler."""
            return lambda hidden, weight: sampler(hidden @ weight.T, t, p)

        def ours(hidden: torch.Tensor, weight: torch.Tensor, keys=keys, options=options) -> tuple:
            return mf.lm_head_confidence(hidden, weight, **options, **keys, backend=BACKEND)

        def our_sampler(x: torch.Tensor, t: float, p: float, keys=keys) -> tuple:
            return mf.sample_confidence(x, temperature=t, top_p=p, **keys, backend=BACKEND)

        peers: Makers = {
            "product, sample_confidence": lambda: each(then(our_sampler)),
            "product, by hand": lambda: each(then(sample_by_hand)),
        }
        if importlib.util.find_spec("flashinfer"):
            peers["product, flashinfer"] = lambda: each(then(sample_with_flashinfer))
        if importlib.util.find_spec("cut_cross_entropy"):
            peers["cut_cross_entropy, one logprob"] = lambda: each(cut_cross_entropy)
        if importlib.util.find_spec("liger_kernel"):
            peers["liger, one logprob"] = lambda: each(liger)
        case = f"lm_head_confidence {batch} x {size} x {vocab} bf16 T {temperature} top_p {top_p}"
        flop = 2.0 * batch * size * vocab
        try:
            rows.append(measure(machine, case, each(ours), peers, nbytes, flop))
        except RuntimeError as error:  # one shape must not cost the others
            rows.append({"case": case, "error": f"{type(error).__name__}: {error}"})
    return rows


def cut_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The logprob of a given token alone, without a draw or a top-k."""
    from cut_cross_entropy import linear_cross_entropy

    targets = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    return linear_cross_entropy(hidden, weight, targets, reduction="none")


def liger(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same by Liger, which stores the logits in parts."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    targets = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    return LigerFusedLinearCrossEntropyLoss(reduction="none")(weight, hidden, targets)


def forests(machine: Machine) -> dict[str, Tree]:
    """The shapes of a search, from everything shared to nothing."""
    if machine.dry:
        return {"prompt 20 x 3": prompt_and_branches(20, 3, 5)}
    return {
        "prompt 1024 x 8 x 64": prompt_and_branches(1024, 8, 64),
        "prompt 1024 x 64 x 64": prompt_and_branches(1024, 64, 64),
        "prompt 2048 x 256 x 64": prompt_and_branches(2048, 256, 64),
        "wide root 32768 x 64 x 1": prompt_and_branches(32768, 64, 1),
        "search 4 x 8 depth 6": search_tree(4, 8, 6, 32, 400),
        "search 32 x 16 depth 12": search_tree(32, 16, 12, 32, 1000),
        "nodes of 1-16": many_small_nodes(),
        "nothing shared 64 x 1088": private(64, 1088),
        "nothing shared 64 x 8192": private(64, 8192),
    }


def attention(machine: Machine) -> list[dict]:
    """tree_attention, against SDPA and FlashInfer on private KV that was gathered for them."""
    rows = []
    models = ("nano-marco",) if machine.dry else ("qwen2-7b", "llama-1b", "llama-3b")
    for model, (name, tree) in itertools.product(models, forests(machine).items()):
        if machine.out_of_time:
            break
        heads, kv_heads, dim = HEADS[model]
        nbytes = 4 * sum(tree.lens) * kv_heads * dim + 4 * len(tree.leaves) * heads * dim
        sets = machine.rotating(
            lambda _: attention_inputs(machine, model, tree, torch.bfloat16),  # noqa: B023
            nbytes,
        )[: 4 if sum(tree.lens) > 20000 else 8]
        plan = sets[0][3]
        out = torch.empty_like(sets[0][0])
        workspace = torch.empty(plan.workspace_numel, device=machine.device)

        def ours(inputs: tuple, plan=plan, out=out, workspace=workspace) -> torch.Tensor:
            q, k, v, _ = inputs
            return mf.tree_attention(q, k, v, plan, out=out, workspace=workspace, backend=BACKEND)

        seen = int(plan.path_lens.sum())
        row = measure(
            machine, f"tree_attention {model} {name}",
            [lambda each=each: ours(each) for each in sets],
            attention_peers(sets, tree, seen * kv_heads * dim * 4),
            nbytes, 4.0 * seen * heads * dim,
        )  # fmt: skip
        rows.append(row | {"rho": seen / sum(tree.lens), "queries": len(tree.leaves)})
    return rows


def attention_peers(sets: list[tuple], tree: Tree, private_bytes: int) -> Makers:
    """Private copies of every path; the copying is not timed. 24 GB of them at most."""
    few = sets[: max(1, min(len(sets), int(24e9 // max(private_bytes, 1))))]

    def sdpa() -> Calls:
        if private_bytes > 24e9:
            raise MemoryError("private copies of the paths would take more than 24 GB")
        return [private_attention(q, *gather(k, v, tree)) for q, k, v, _ in few]

    def flashinfer() -> Calls:
        return [flashinfer_decode(q, *gather(k, v, tree)) for q, k, v, _ in few]

    peers: Makers = {"SDPA on private KV": sdpa}
    if importlib.util.find_spec("flashinfer"):
        peers["FlashInfer on private KV"] = flashinfer
    return peers


def gather(k: torch.Tensor, v: torch.Tensor, tree: Tree) -> tuple[list, list]:
    table, _ = tables(tree)
    return gathered(k, tree, table), gathered(v, tree, table)


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


def append_kv(machine: Machine) -> list[dict]:
    """append_kv of one layer, against an indexed assignment."""
    rows = []
    heads, dim = HEADS["qwen2-7b"][1:]
    for tokens in (3,) if machine.dry else (1, 64, 1024):
        k, v = torch.randn(2, tokens, heads, dim, device=machine.device).bfloat16()
        shape = (2, 4 * tokens, heads, PAGE, dim)
        caches = torch.zeros(shape, device=machine.device, dtype=torch.bfloat16)
        slots = torch.randperm(4 * tokens * PAGE, device=machine.device)[:tokens]
        page, offset = slots // PAGE, slots % PAGE

        def by_hand(k=k, v=v, caches=caches, page=page, offset=offset) -> None:
            caches[0, page, :, offset] = k
            caches[1, page, :, offset] = v

        def ours(k=k, v=v, caches=caches, slots=slots) -> None:
            mf.append_kv(k, v, caches[0], caches[1], slots, backend=BACKEND)

        peers: Makers = {"indexed assignment": lambda: [by_hand]}
        rows.append(measure(machine, f"append_kv {tokens} tokens", [ours], peers, 4 * k.nbytes))
    return rows


def search(machine: Machine) -> list[dict]:
    """A whole search on nano-marco: expansions and tokens a second, by how many trees share it."""
    rows = []
    question = "How many times does the letter r occur in strawberry?"
    with mf.Engine.from_pretrained("nano-marco", device=machine.device) as engine:
        for trees in (1,) if machine.dry else (1, 8, 32):
            if machine.out_of_time:
                break
            config = mf.SearchConfig(expansions=2 if machine.dry else 32)
            mf.solve([question] * trees, engine, config)
            results = mf.solve([question] * trees, engine, config)
            rows.append({"case": f"search, {trees} trees", **totals(results)})
    return rows


def totals(results: list) -> dict[str, object]:
    """Rates of a forest of searches that ran together."""
    seconds = max(result.stats.seconds for result in results)
    return {
        "answers": sorted({str(result.answer) for result in results}),
        "expansions_s": sum(result.stats.expansions for result in results) / seconds,
        "tokens_s": sum(result.stats.tokens for result in results) / seconds,
    }
