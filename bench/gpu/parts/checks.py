"""Whether the kernels are right on the device: against float64, replayed, repeated.

A check raises AssertionError at the first wrong number; its row says how much it compared. smoke.py
runs the same checks at small shapes, first; here are those of full size, last.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch

import marco_fast as mf
from bench.common.trees import (
    HEADS,
    PAGE,
    Tree,
    many_small_nodes,
    private,
    prompt_and_branches,
    tables,
)
from bench.common.trees import search as search_tree
from bench.gpu.machine import Case, Machine
from bench.gpu.parts.inputs import (
    BACKEND,
    attention_inputs,
    keys_on,
    lm_head_inputs,
    random_logits,
)
from marco_fast.kernels.lm_head_confidence import product
from marco_fast.ops.confidence.options import Head
from tests.support.draws import OPTIONS, check_draws, options_of
from tests.support.hostile import LOGIT_KINDS, logits_of
from tests.support.tolerance import assert_close, assert_lse_close, assert_scores, entropy_of

FULL_VOCABS = (128256, 151936, 152064)
Dtype = torch.dtype


def on_cpu(result: tuple) -> tuple:
    """A NamedTuple of results, copied to the CPU."""
    return type(result)(*(field.cpu() for field in result))


def hostile(machine: Machine, kind: str, rows: int, vocab: int, dtype: Dtype) -> torch.Tensor:
    """Logits of a kind that breaks kernels, on the device."""
    if machine.recording:
        return torch.empty(rows, vocab, dtype=dtype)
    return logits_of(kind, rows, vocab, dtype).to(machine.device)


def assert_scored(got: tuple, logits: torch.Tensor, ids: torch.Tensor, **options: object) -> None:
    """`got` against float64, computed on the device."""
    want = mf.reference.topk_confidence(logits, ids, **options)
    plain = mf.reference.topk_confidence(logits, ids, dtype=torch.float32, **options)
    # A row without a token scores -1, which is no mistake where the operation drew it.
    status = want.status & ~8
    assert_scores(on_cpu(got), on_cpu(want._replace(status=status)), on_cpu(plain), "torch")


def check_confidence(machine: Machine, logits: torch.Tensor) -> dict:
    """topk_confidence with few and with many keys, on ids of which some are the largest."""
    vocab = logits.shape[1]
    ids = torch.zeros(len(logits), dtype=torch.int64, device=machine.device)
    if not machine.recording:
        ids.random_(0, vocab)
        ids[::3] = logits[::3].float().nan_to_num(-torch.inf).argmax(-1)
    for top_k, denominator in ((min(5, vocab), "top_k"), (min(32, vocab), "union")):
        options = {"top_k": top_k, "denominator": denominator}
        got = mf.topk_confidence(logits, ids, backend=BACKEND, **options)
        if not machine.recording:
            assert_scored(got, logits, ids, **options)
    return {"rows": 2 * len(logits)}


def check_sampling(machine: Machine, logits: torch.Tensor, names: tuple[str, ...]) -> dict:
    """sample_confidence: draws by brute force in float64, scores, entropy, sums of paths."""
    rows, top_k = len(logits), min(5, logits.shape[1])
    for number, name in enumerate(names):
        keys = keys_on(machine, rows, number)
        sums = torch.zeros(rows, dtype=torch.int64, device=machine.device)
        counts = torch.zeros(rows, dtype=torch.int32, device=machine.device)
        got = mf.sample_confidence(
            logits, **options_of(name), **keys, top_k=top_k, path_sums=sums, path_counts=counts,
            backend=BACKEND,
        )  # fmt: skip
        if machine.recording:
            continue
        cpu_keys = {key: x.cpu() for key, x in keys.items()}
        check_draws(logits.cpu(), got.token_ids.cpu(), cpu_keys, options_of(name))
        scores = mf.TopKConfidence(*got[1:7])
        assert_scored(scores, logits, got.token_ids.long(), top_k=top_k)
        assert_lse_close(got.entropy.cpu(), entropy_of(logits, 1.0).cpu())
        assert torch.equal(sums, (got.confidence.double() * 2.0**40).round().long())
        assert counts.eq(1).all()
    return {"rows": rows * len(names)}


def check_lm_head_draws(
    machine: Machine, vocab: int, size: int, dtype: Dtype, names: tuple[str, ...]
) -> dict:
    """lm_head_confidence where the product is exact: rows of hidden that pick a column each."""
    rows, top_k = 2 if machine.dry else 7, min(5, vocab)
    rows = min(rows, size)
    _, weight = lm_head_inputs(machine, rows, vocab, size, dtype)
    picks = torch.eye(rows, size, dtype=dtype, device=machine.device)
    logits = hostile(machine, "normal", rows, vocab, dtype)
    if not machine.recording:
        weight[:, :rows] = logits.T
    for number, name in enumerate(names):
        keys = keys_on(machine, rows, number)
        options = {**options_of(name), **keys, "top_k": top_k, "backend": BACKEND}
        got = mf.lm_head_confidence(picks, weight, **options)
        if machine.recording:
            continue
        cpu_keys = {key: x.cpu() for key, x in keys.items()}
        check_draws(logits.cpu(), got.token_ids.cpu(), cpu_keys, options_of(name))
        assert_scored(mf.TopKConfidence(*got[1:7]), logits, got.token_ids.long(), top_k=top_k)
    return {"rows": rows * len(names)}


def check_lm_head_product(machine: Machine, rows: int, vocab: int, size: int, dtype: Dtype) -> dict:
    """Scores of random rows: as near to float64 as 1.5 times the error of a library's product.

    The matrix units round their sums otherwise than float32 does (some cut them off, after every
    16 products), so a bound from float32's rounding alone would be wrong. And a library that adds
    several partial products loses less: half a unit for each of ours is allowed beside its error.
    """
    hidden, weight = lm_head_inputs(machine, rows, vocab, size, dtype)
    keys, top_k = keys_on(machine, rows), min(5, vocab)
    got = mf.lm_head_confidence(hidden, weight, **keys, top_k=top_k, backend=BACKEND)
    if machine.recording:
        return {}
    logits = hidden.double() @ weight.double().T
    exact, lse = logits.log_softmax(-1), logits.logsumexp(-1)
    library = product(Head(hidden, weight, None, torch.float32)).double().log_softmax(-1)
    error = (library - exact).abs().max().item()
    token = exact.gather(1, got.token_ids.long()[:, None])[:, 0]
    best = exact.topk(top_k).values
    allowed = 1.5 * error + 2.0**-20 * lse.abs().max().item()
    allowed += size / 16 * 2.0**-24 * logits.abs().max().item()
    found = {
        "token": (got.token_logprobs - token).abs().max().item(),
        "top k": (got.topk_logprobs - best).abs().max().item(),
        "lse": (got.lse - lse).abs().max().item(),
    }
    for name, value in found.items():
        assert value <= allowed, f"{name}: expected an error up to {allowed:.3g}, got {value:.3g}"
    return {"largest_error": max(found.values()), "library_error": error}


def check_lm_head_batches(machine: Machine, vocab: int, size: int, dtype: Dtype) -> dict:
    """Rows with options of their own against each row alone, a library's product, three shards."""
    rows = 3 if machine.dry else 40
    hidden, weight = lm_head_inputs(machine, rows, vocab, size, dtype)
    values = torch.tensor([[*OPTIONS.values()][b % len(OPTIONS)] for b in range(rows)]).T
    drawn = dict(zip(options_of("plain"), values.to(machine.device), strict=True))
    drawn["sample_top_k"] = drawn["sample_top_k"].int()
    options = drawn | keys_on(machine, rows)
    fixed = {"top_k": min(5, vocab), "backend": BACKEND}
    got = mf.lm_head_confidence(hidden, weight, **options, **fixed)
    for b in range(0, rows, 2 if machine.dry else 7):
        own = {key: x[b : b + 1] for key, x in options.items()}
        alone = mf.lm_head_confidence(hidden[b : b + 1], weight, **own, **fixed)
        assert_same(machine, alone, got, slice(b, b + 1))
    twice = {key: torch.cat([x, x]) for key, x in options.items()}
    many = mf.lm_head_confidence(torch.cat([hidden, hidden]), weight, **twice, **fixed)
    shards = weight.split((vocab // 3 + 15) // 16 * 16)
    records, begin = [], 0
    for shard in shards:
        records.append(mf.lm_head_records(hidden, shard, begin, vocab, **drawn, **fixed))
        begin += len(shard)
    if machine.recording:
        return {}
    assert (many.lse[:rows] - got.lse).abs().max() < 1e-3
    merged = mf.merge_records(
        records,
        lambda shard, some: hidden[some].float() @ shards[shard].float().T,
        **options,
        top_k=fixed["top_k"],
    )
    assert (merged.token_ids != got.token_ids).sum() <= 1
    assert (merged.lse - got.lse).abs().max() < 1e-3
    return {"rows": rows}


def check_attention(machine: Machine, model: str, tree: Tree, dtype: Dtype) -> dict:
    """tree_attention against float64, every output and the workspace full of NaN before."""
    q, k_cache, v_cache, plan = attention_inputs(machine, model, tree, dtype, room=4.0)
    out = torch.full_like(q, torch.nan)
    workspace = torch.full((plan.workspace_numel,), torch.nan, device=machine.device)
    out, lse = mf.tree_attention(
        q, k_cache, v_cache, plan, return_lse=True, out=out, workspace=workspace, backend=BACKEND
    )
    if machine.recording:
        return {}
    want, want_lse = mf.reference.tree_attention(q, k_cache, v_cache, plan, dtype=torch.float64)
    plain, _ = mf.reference.tree_attention(q, k_cache, v_cache, plan, dtype=torch.float32)
    assert_close(out.cpu(), want.cpu(), plain.to(dtype).cpu(), name=f"{model} {dtype}")
    assert_lse_close(lse.cpu(), want_lse.cpu())
    return {"queries": len(q), "largest_error": (out.double() - want).abs().max().item()}


def check_append(machine: Machine, model: str) -> dict:
    """append_kv: every slot that was named, and no other."""
    _, heads, dim = HEADS[model]
    k, v = machine.normal(2, 3, heads, dim, dtype=torch.bfloat16)
    k_cache, v_cache = caches = machine.normal(2, 5, heads, PAGE, dim, dtype=torch.bfloat16)
    want = caches.clone()
    slots = torch.tensor([17, -1, 79], device=machine.device)
    mf.append_kv(k, v, k_cache, v_cache, slots, backend=BACKEND)
    for token, slot in ((0, 17), (2, 79)):
        for cache, new in zip(want, (k, v), strict=True):
            cache[slot // PAGE, :, slot % PAGE] = new[token]
    if not machine.recording:
        assert torch.equal(caches, want), "other slots than those named were written"
    return {"tokens": 3}


def check_advance(machine: Machine) -> dict:
    """plan.advance on the device: lengths grow where `active` says so."""
    from marco_fast.kernels.tree_attention import advance

    lens = torch.arange(300, dtype=torch.int32, device=machine.device)
    order = lens.flip(0).contiguous()
    active = (lens % 3 == 0).flip(0).contiguous()  # in the caller's order
    want = lens + 1 + active[order.long()].int()
    advance(lens, order, None)
    advance(lens, order, active)
    if not machine.recording:
        assert torch.equal(lens, want), "other lengths than those of the active queries grew"
    return {"queries": 300}


Step = Callable[[], tuple]


def decode_step(machine: Machine) -> tuple[Step, Callable[[], None]]:
    """(a step whose results are new tensors each call, a function that changes every input)."""
    vocab, rows = (4112, 2) if machine.dry else (151936, 8)
    tree = prompt_and_branches(40, rows, 20)
    model = "nano-marco" if machine.dry else "qwen2-7b"
    q, k_cache, v_cache, plan = attention_inputs(machine, model, tree, room=4.0)
    table, _ = tables(tree)
    workspace = torch.empty(plan.workspace_numel, device=machine.device)
    out = torch.empty_like(q)
    logits = torch.empty(rows, vocab, device=machine.device, dtype=torch.bfloat16)
    hidden, weight = lm_head_inputs(machine, rows, 304 if machine.dry else vocab, 64)
    keys = keys_on(machine, rows)
    options = {
        "temperature": torch.full((rows,), 0.8, device=machine.device),
        "top_p": torch.full((rows,), 0.95, device=machine.device),
    }

    def step() -> tuple:
        mf.tree_attention(q, k_cache, v_cache, plan, out=out, workspace=workspace, backend=BACKEND)
        drawn = mf.sample_confidence(logits, temperature=0.8, top_p=0.95, **keys, backend=BACKEND)
        scored = mf.topk_confidence(logits, keys["positions"] % vocab, backend=BACKEND)
        headed = mf.lm_head_confidence(hidden, weight, **options, **keys, backend=BACKEND)
        plain = mf.lm_head_confidence(hidden, weight, **keys, backend=BACKEND)
        return (out.clone(), *drawn, *scored, *headed, *plain)

    def change() -> None:
        # Other lengths and another order of the queries, planned in place.
        cut = [int(torch.randint(1, n + 1, ())) for n in tree.lens]
        plan.update(tree.parents, cut, table, torch.randperm(rows) + 1)
        if machine.recording:
            return
        q.normal_()
        for cache in (k_cache, v_cache):
            cache.copy_(torch.where(cache.isnan(), cache, torch.randn_like(cache)))
        logits.normal_(0.0, 3.0)
        hidden.normal_()
        keys["positions"] += 1
        keys["seeds"] *= 31

    change()
    return step, change


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal down to the sign of zero; NaN equals itself."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.view(whole), b.view(whole))


def assert_same(machine: Machine, part: tuple, whole: tuple, rows: slice) -> None:
    """The results of some rows are those that the whole batch gives them, bit for bit."""
    for got, want in zip(part, whole, strict=True):
        if not machine.recording:
            assert same_bits(got, want[rows]), f"rows {rows.start} to {rows.stop} differ in a batch"


def check_replays(machine: Machine, replays: int) -> dict:
    """A captured step, replayed after every input changed in place, equals the same step eager."""
    step, change = decode_step(machine)
    results: list[tuple] = []
    step()
    if machine.mode == "gpu":
        replay: Callable[[], None] = machine.capture([lambda: results.append(step())]).replay
    else:
        replay = lambda: results.append(step())  # noqa: E731
    for _ in range(replays):
        change()
        replay()
        machine.wait()
        for got, want in zip(results[-1], step(), strict=True):
            if not machine.recording:
                assert same_bits(got, want), "a replay differs from the step itself"
    return {"replays": replays}


def check_repeats(machine: Machine, repeats: int) -> dict:
    """A step gives the same bits again and again."""
    step, _ = decode_step(machine)
    first = step()
    for i in range(1 if machine.recording else repeats):
        if machine.out_of_time:
            return {"repeats": i}
        assert_same(machine, step(), first, slice(None))
    return {"repeats": repeats}


def check_batch_sizes(machine: Machine, size: int) -> dict:
    """Rows of topk_confidence and lm_head_confidence have the same bits in any batch."""
    most, sizes = (3, (1, 2)) if machine.dry else (64, (1, 2, 8, 31))
    logits = random_logits(machine, most, 4112 if machine.dry else 151936, torch.float32)
    ids = torch.zeros(most, dtype=torch.int64, device=machine.device)
    whole = mf.topk_confidence(logits, ids, backend=BACKEND)
    hidden, weight = lm_head_inputs(machine, most, 304 if machine.dry else 151936, size)
    for n in sizes:
        part = mf.topk_confidence(logits[:n], ids[:n], backend=BACKEND)
        assert_same(machine, part, whole, slice(0, n))
    for options in ({}, {"temperature": 0.7, "top_p": 0.95}):
        keys = keys_on(machine, most)
        drawn = mf.lm_head_confidence(hidden, weight, **options, **keys, backend=BACKEND)
        for n in sizes:
            own = {key: x[:n] for key, x in keys.items()}
            part = mf.lm_head_confidence(hidden[:n], weight, **options, **own, backend=BACKEND)
            assert_same(machine, part, drawn, slice(0, n))
    return {"sizes": len(sizes)}


# The parts of full size.


def confidence(machine: Machine) -> Iterator[Case]:
    """topk_confidence: hostile rows, and large batches of random ones."""
    for kind, vocab, dtype in hostile_cases(machine):
        name = f"topk_confidence {kind} 7 x {vocab} {str(dtype)[6:]}"
        rows = 2 if machine.dry else 7
        make = partial(hostile, machine, kind, rows, vocab, dtype)
        yield Case(name, lambda make=make: check_confidence(machine, make()))
    for rows, dtype in () if machine.dry else itertools.product((64, 1024), FLOATS[:2]):
        name = f"topk_confidence random {rows} x {FULL_VOCABS[2]} {str(dtype)[6:]}"
        make = partial(random_logits, machine, rows, FULL_VOCABS[2], dtype)
        yield Case(name, lambda make=make: check_confidence(machine, make()))


FLOATS = (torch.bfloat16, torch.float32, torch.float16)


def hostile_cases(machine: Machine) -> Iterator[tuple[str, int, Dtype]]:
    """Every kind of logits; float16 and odd vocabularies on fewer of them."""
    if machine.dry:
        yield "nan", 4112, torch.bfloat16
        return
    for kind in LOGIT_KINDS:
        for dtype in FLOATS[:2]:
            yield kind, FULL_VOCABS[1], dtype
        yield kind, 4097, torch.bfloat16
    yield "normal", FULL_VOCABS[2], torch.float16


def sampling(machine: Machine) -> Iterator[Case]:
    """sample_confidence; the brute force takes the host some 20 ms a row at full size: a third of
    the options each."""
    for number, (kind, vocab, dtype) in enumerate(hostile_cases(machine)):
        names = ("plain", "top_p") if machine.dry else (*OPTIONS,)[number % 3 :: 3]
        rows = 2 if machine.dry else 7
        make = partial(hostile, machine, kind, rows, vocab, dtype)
        yield Case(
            f"sample_confidence {kind} 7 x {vocab} {str(dtype)[6:]}",
            lambda make=make, names=names: check_sampling(machine, make(), names),
        )


def lm_head(machine: Machine) -> Iterator[Case]:
    """lm_head_confidence: draws where the product is exact, scores where it is not."""
    if machine.dry:
        yield Case("draws", partial(check_lm_head_draws, machine, 304, 64, FLOATS[0], ("top_p",)))
        return
    for vocab, size in ((151936, 896), (128256, 2048), (152064, 3584), (32000, 8192)):
        for dtype in FLOATS[:2] if size < 8192 else FLOATS[:1]:
            told = f"lm_head_confidence {size} x {vocab} {str(dtype)[6:]}"
            names = (*OPTIONS,)
            yield Case(
                f"{told}, draws", partial(check_lm_head_draws, machine, vocab, size, dtype, names)
            )
            yield Case(
                f"{told}, product", partial(check_lm_head_product, machine, 7, vocab, size, dtype)
            )
    yield Case(
        "lm_head_confidence, rows alone and in a batch, shards",
        partial(check_lm_head_batches, machine, 151936, 896, torch.bfloat16),
    )
    yield Case(
        "lm_head_confidence 225 x 4097 bfloat16, product",
        partial(check_lm_head_product, machine, 7, 4097, 225, torch.bfloat16),
    )


def trees(machine: Machine) -> dict[str, Tree]:
    """Shared prompts, nothing shared, a search, very many small nodes, empty segments."""
    if machine.dry:
        return {"prompt 20 x 3 x 5": prompt_and_branches(20, 3, 5)}
    return {
        "prompt 1024 x 16 x 64": prompt_and_branches(1024, 16, 64),
        "prompt 8192 x 64 x 17": prompt_and_branches(8192, 64, 17),
        "nothing shared 16 x 1088": private(16, 1088),
        "search 4 x 8": search_tree(4, 8, 6, 32, 400),
        "nodes of 1-16": many_small_nodes(),
        "empty segments": Tree([-1, 0, 0, 1], [0, 33, 0, 0], [0, 1, 2, 3]),
    }


def attention(machine: Machine) -> Iterator[Case]:
    """tree_attention with the heads of each target model; float16 with one of them."""
    models = {"nano-marco": FLOATS[:1]}
    if not machine.dry:
        models = {"qwen2-7b": FLOATS, "llama-1b": FLOATS[:2], "llama-3b": FLOATS[:1], **models}
    for model, dtypes in models.items():
        for (name, tree), dtype in itertools.product(trees(machine).items(), dtypes):
            case = f"tree_attention {model} {name} {str(dtype)[6:]}"
            yield Case(case, partial(check_attention, machine, model, tree, dtype))


def graphs(machine: Machine) -> Iterator[Case]:
    """Replays after every input changed."""
    yield Case("replays", partial(check_replays, machine, 50 if machine.mode == "gpu" else 1))


def repeats(machine: Machine) -> Iterator[Case]:
    """A thousand repeats of the split paths, and batches of every size, bit for bit."""
    yield Case("batch sizes", partial(check_batch_sizes, machine, 64 if machine.dry else 3584))
    yield Case("repeats", partial(check_repeats, machine, 1000 if machine.mode == "gpu" else 1))
