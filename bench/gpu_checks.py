"""What must hold on a GPU before anything is timed: parity at full size, graphs, repeats.

Each check raises AssertionError at the first wrong number; its rows say what ran.
"""

import itertools
from collections.abc import Callable, Iterator

import torch

import marco_fast as mf
from bench.gpu_machine import Machine
from bench.trees import HEADS, PAGE, Tree, many_small_nodes, private, prompt_and_branches, tables
from bench.trees import search as search_tree
from tests.compare import assert_close, assert_lse_close, assert_scores, entropy_of
from tests.draws import OPTIONS, check_draws, keyed, options_of
from tests.inputs import LOGIT_KINDS, logits_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BACKEND = "triton"
FULL_VOCABS = (128256, 151936, 152064)


def on_cpu(result: tuple) -> tuple:
    """A NamedTuple of results, copied to the CPU."""
    return type(result)(*(field.cpu() for field in result))


def logit_cases(machine: Machine) -> Iterator[tuple[str, torch.Tensor]]:
    """Hostile logits of a few rows and large batches of random ones."""
    vocabs = (9001,) if machine.dry else (5, 4097, *FULL_VOCABS)
    kinds = ("normal", "nan") if machine.dry else tuple(LOGIT_KINDS)
    dtypes = DTYPES[:2] if machine.dry else DTYPES
    for kind, vocab, dtype in itertools.product(kinds, vocabs, dtypes):
        rows = logits_of(kind, 2 if machine.dry else 7, vocab, dtype)
        yield f"{kind} {vocab} {dtype}", rows.to(machine.device)
    if not machine.dry:
        for rows, dtype in itertools.product((64, 256, 1024), DTYPES):
            logits = 3 * torch.randn(rows, FULL_VOCABS[-1], device=machine.device)
            yield f"random {rows} x {FULL_VOCABS[-1]} {dtype}", logits.to(dtype)


def score_check(got: tuple, logits: torch.Tensor, ids: torch.Tensor, **options: object) -> None:
    """The fields of TopKConfidence in `got` against float64 on the same device."""
    want = mf.reference.topk_confidence(logits, ids, **options)
    plain = mf.reference.topk_confidence(logits, ids, dtype=torch.float32, **options)
    # A row without a token scores -1, which is no mistake where the operation drew it.
    status = want.status & ~8
    assert_scores(on_cpu(got), on_cpu(want._replace(status=status)), on_cpu(plain), "torch")


def confidence(machine: Machine) -> list[dict]:
    """topk_confidence against float64."""
    count = 0
    for _, logits in logit_cases(machine):
        vocab = logits.shape[1]
        ids = torch.randint(0, vocab, (len(logits),), device=machine.device)
        ids[::3] = logits[::3].float().nan_to_num(-torch.inf).argmax(-1)
        for top_k, denominator in ((min(5, vocab), "top_k"), (min(32, vocab), "union")):
            options = {"top_k": top_k, "denominator": denominator}
            got = mf.topk_confidence(logits, ids, backend=BACKEND, **options)
            score_check(got, logits, ids, **options)
            count += 1
    return [{"case": "topk_confidence equals float64", "cases": count}]


def sampling(machine: Machine) -> list[dict]:
    """sample_confidence: draws by brute force in float64 (few rows), scores, entropy, paths."""
    count = 0
    names = ("plain", "top_p") if machine.dry else tuple(OPTIONS)
    for _, logits in logit_cases(machine):
        if len(logits) > 7:
            continue
        rows = len(logits)
        # The brute force takes the host some 20 ms a row at full size: a third of the options each.
        for name in names if logits.shape[1] < FULL_VOCABS[0] else names[count % 3 :: 3]:
            keys = {key: x.to(machine.device) for key, x in keyed(rows, count).items()}
            sums = torch.zeros(rows, dtype=torch.int64, device=machine.device)
            counts = torch.zeros(rows, dtype=torch.int32, device=machine.device)
            got = mf.sample_confidence(
                logits, **options_of(name), **keys, top_k=min(5, logits.shape[1]),
                path_sums=sums, path_counts=counts, backend=BACKEND,
            )  # fmt: skip
            cpu_keys = {key: x.cpu() for key, x in keys.items()}
            check_draws(logits.cpu(), got.token_ids.cpu(), cpu_keys, options_of(name))
            scores = mf.TopKConfidence(*got[1:7])
            score_check(scores, logits, got.token_ids.long(), top_k=min(5, logits.shape[1]))
            assert_lse_close(got.entropy.cpu(), entropy_of(logits, 1.0).cpu())
            fixed = (got.confidence.double() * 2.0**40).round().long()
            assert torch.equal(sums, fixed)
            assert counts.eq(1).all()
            count += 1
    return [{"case": "sample_confidence equals float64", "cases": count}]


def lm_head_inputs(
    machine: Machine, rows: int, vocab: int, size: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden and weight whose logits have a standard deviation of 3."""
    hidden = torch.randn(rows, size, device=machine.device).to(dtype)
    weight = torch.randn(vocab, size, device=machine.device, dtype=dtype)
    return hidden, weight.mul_(3 / size**0.5)


def lm_head(machine: Machine) -> list[dict]:
    """lm_head_confidence: draws where the product is exact, scores where it is not."""
    count = 0
    shapes = [(300, 64)] if machine.dry else [(151936, 896), (128256, 2048), (152064, 3584)]
    shapes += [] if machine.dry else [(5, 33), (4097, 225), (32000, 8192)]
    names = ("plain", "wide top_p") if machine.dry else tuple(OPTIONS)
    for (vocab, size), dtype in itertools.product(shapes, DTYPES[1:2] if machine.dry else DTYPES):
        rows = 2 if machine.dry else 7
        keys = keyed(rows, count)
        on_device = {key: x.to(machine.device) for key, x in keys.items()}
        hidden, weight = lm_head_inputs(machine, rows, vocab, size, dtype)
        top_k = min(5, vocab)
        for name in names:
            # The first elements of hidden pick a column each; the others are 0.
            logits = logits_of("normal", rows, vocab, dtype)
            picks = torch.eye(rows, size, dtype=dtype, device=machine.device)
            weight[:, :rows] = logits.T.to(machine.device)
            options = {**options_of(name), **on_device, "top_k": top_k, "backend": BACKEND}
            got = mf.lm_head_confidence(picks, weight, **options)
            check_draws(logits, got.token_ids.cpu(), keys, options_of(name))
            scores = mf.TopKConfidence(*got[1:7])
            score_check(scores, logits.to(machine.device), got.token_ids.long(), top_k=top_k)
            count += 1
        got = mf.lm_head_confidence(hidden, weight, **on_device, top_k=top_k, backend=BACKEND)
        exact = hidden.double() @ weight.double().T
        error = 5 * 2.0**-24 * (hidden.double().abs() @ weight.double().abs().T).max().item()
        logprobs = exact.log_softmax(-1)
        token = logprobs.gather(1, got.token_ids.long()[:, None])[:, 0]
        best = logprobs.topk(top_k).values
        assert (got.token_logprobs - token).abs().max() <= 2 * error + 1e-6
        assert (got.topk_logprobs - best).abs().max() <= 2 * error + 1e-6
        assert (got.lse - exact.logsumexp(-1)).abs().max() <= error + 1e-5
        count += 1 + lm_head_batches(machine, weight)
    return [{"case": "lm_head_confidence equals float64", "cases": count}]


def lm_head_batches(machine: Machine, weight: torch.Tensor) -> int:
    """Rows with options of their own against each row alone; a library's product; three shards."""
    rows, (vocab, size) = 3 if machine.dry else 40, weight.shape
    hidden = torch.randn(rows, size, device=machine.device).to(weight.dtype)
    values = torch.tensor([[*OPTIONS.values()][b % len(OPTIONS)] for b in range(rows)]).T
    drawn = dict(zip(options_of("plain"), values.to(machine.device), strict=True))
    drawn["sample_top_k"] = drawn["sample_top_k"].int()
    options = drawn | {key: x.to(machine.device) for key, x in keyed(rows).items()}
    fixed = {"top_k": min(5, vocab), "backend": BACKEND}
    got = mf.lm_head_confidence(hidden, weight, **options, **fixed)
    for b in range(0, rows, 2 if machine.dry else 7):
        own = {key: x[b : b + 1] for key, x in options.items()}
        alone = mf.lm_head_confidence(hidden[b : b + 1], weight, **own, **fixed)
        for one, of_all in zip(alone, got, strict=True):
            assert same_bits(one, of_all[b : b + 1]), f"row {b} differs in a batch"
    twice = {key: torch.cat([x, x]) for key, x in options.items()}
    many = mf.lm_head_confidence(torch.cat([hidden, hidden]), weight, **twice, **fixed)
    assert (many.lse[:rows] - got.lse).abs().max() < 1e-3
    shards = weight.split((vocab + 2) // 3)
    records, begin = [], 0
    for shard in shards:
        records.append(mf.lm_head_records(hidden, shard, begin, vocab, **drawn, **fixed))
        begin += len(shard)
    merged = mf.merge_records(
        records,
        lambda shard, some: hidden[some].float() @ shards[shard].float().T,
        **options,
        top_k=fixed["top_k"],
    )
    assert (merged.token_ids != got.token_ids).sum() <= 1
    assert (merged.lse - got.lse).abs().max() < 1e-3
    return 3


def attention_inputs(
    machine: Machine, model: str, tree: Tree, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, mf.TreeAttentionPlan]:
    """q, caches with NaN in every slot that no segment owns, and the plan."""
    heads, kv_heads, dim = HEADS[model]
    table, pages = tables(tree)
    caches = torch.full((2, pages + 1, kv_heads, PAGE, dim), torch.nan, device=machine.device)
    for n, length in enumerate(tree.lens):
        for i in range(-(-length // PAGE)):
            held = min(PAGE, length - i * PAGE)
            shape = (2, kv_heads, held, dim)
            caches[:, int(table[n, i]), :, :held] = torch.randn(shape, device=machine.device)
    q = torch.randn(len(tree.leaves), heads, dim, device=machine.device).to(dtype)
    plan = mf.plan_tree_attention(
        tree.parents, tree.lens, table, tree.leaves, num_heads=heads, num_kv_heads=kv_heads,
        head_dim=dim, page_size=PAGE, device=machine.device, room=4.0,
    )  # fmt: skip
    k_cache, v_cache = caches.to(dtype)
    return q, k_cache, v_cache, plan


def trees(machine: Machine) -> dict[str, Tree]:
    """Shared prompts, nothing shared, a search, very many small nodes, empty segments."""
    if machine.dry:
        return {"prompt 20 x 3": prompt_and_branches(20, 3, 5)}
    return {
        "prompt 1024 x 16 x 64": prompt_and_branches(1024, 16, 64),
        "prompt 8192 x 64 x 17": prompt_and_branches(8192, 64, 17),
        "nothing shared 16 x 1088": private(16, 1088),
        "search 4 x 8": search_tree(4, 8, 6, 32, 400),
        "nodes of 1-16": many_small_nodes(),
        "empty segments": Tree([-1, 0, 0, 1], [0, 33, 0, 0], [0, 1, 2, 3]),
    }


def attention(machine: Machine) -> list[dict]:
    """tree_attention against float64, in every dtype, with the heads of each target model."""
    count = 0
    models = ("nano-marco",) if machine.dry else tuple(HEADS)
    for model, tree, dtype in itertools.product(models, trees(machine).values(), DTYPES):
        q, k_cache, v_cache, plan = attention_inputs(machine, model, tree, dtype)
        out = torch.full_like(q, torch.nan)
        workspace = torch.full((plan.workspace_numel,), torch.nan, device=machine.device)
        out, lse = mf.tree_attention(
            q, k_cache, v_cache, plan, return_lse=True, out=out, workspace=workspace,
            backend=BACKEND,
        )  # fmt: skip
        want, want_lse = mf.reference.tree_attention(q, k_cache, v_cache, plan, dtype=torch.float64)
        plain, _ = mf.reference.tree_attention(q, k_cache, v_cache, plan, dtype=torch.float32)
        assert_close(out.cpu(), want.cpu(), plain.to(dtype).cpu(), name=f"{model} {dtype}")
        assert_lse_close(lse.cpu(), want_lse.cpu())
        count += 1
    return [{"case": "tree_attention equals float64", "cases": count}]


def decode_step(machine: Machine) -> tuple[Callable[[], tuple], Callable[[], None]]:
    """(a step whose results are new tensors each call, a function that changes every input)."""
    vocab, rows = (5000, 2) if machine.dry else (151936, 8)
    tree = prompt_and_branches(40, rows, 20)
    q, k_cache, v_cache, plan = attention_inputs(machine, "qwen2-7b", tree, torch.bfloat16)
    table, _ = tables(tree)
    workspace = torch.empty(plan.workspace_numel, device=machine.device)
    out = torch.empty_like(q)
    logits = torch.empty(rows, vocab, device=machine.device, dtype=torch.bfloat16)
    head = 300 if machine.dry else vocab
    hidden, weight = lm_head_inputs(machine, rows, head, 64, torch.bfloat16)
    keys = {key: x.to(machine.device) for key, x in keyed(rows).items()}
    options = {
        "temperature": torch.full((rows,), 0.8, device=machine.device),
        "top_p": torch.full((rows,), 0.95, device=machine.device),
    }
    rng = torch.Generator(machine.device).manual_seed(0)

    def step() -> tuple:
        mf.tree_attention(q, k_cache, v_cache, plan, out=out, workspace=workspace, backend=BACKEND)
        drawn = mf.sample_confidence(logits, **options, **keys, backend=BACKEND)
        scored = mf.topk_confidence(logits, keys["positions"] % vocab, backend=BACKEND)
        headed = mf.lm_head_confidence(hidden, weight, **options, **keys, backend=BACKEND)
        plain = mf.lm_head_confidence(hidden, weight, **keys, backend=BACKEND)
        return (out.clone(), *drawn, *scored, *headed, *plain)

    def change() -> None:
        # Other lengths and another order of the queries, planned in place.
        cut = [int(torch.randint(1, n + 1, ())) for n in tree.lens]
        plan.update(tree.parents, cut, table, torch.randperm(rows) + 1)
        q.normal_(generator=rng)
        for cache in (k_cache, v_cache):
            cache.copy_(torch.where(cache.isnan(), cache, torch.randn_like(cache)))
        logits.normal_(0.0, 3.0, generator=rng)
        hidden.normal_(generator=rng)
        keys["positions"] += 1
        keys["seeds"] *= 31

    change()
    return step, change


def graphs(machine: Machine) -> list[dict]:
    """A captured step, replayed after every input changed in place, equals the same step eager."""
    step, change = decode_step(machine)
    results: list[tuple] = []
    step()
    if machine.dry:
        replay: Callable[[], None] = lambda: results.append(step())  # noqa: E731
    else:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            results.append(step())
        replay = captured.replay
    rounds = 2 if machine.dry else 50
    for _ in range(rounds):
        change()
        replay()
        machine.wait()
        for got, want in zip(results[-1], step(), strict=True):
            assert same_bits(got, want), "a replay differs from the step itself"
    return [{"case": "graph replay, inputs and plan changed in place", "replays": rounds}]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal down to the sign of zero; NaN equals itself."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.view(whole), b.view(whole))


def repeats(machine: Machine) -> list[dict]:
    """A step gives the same bits again and again, and for a part of the batch."""
    step, _ = decode_step(machine)
    first, rounds = step(), 2 if machine.dry else 1000
    for _ in range(rounds):
        for got, want in zip(step(), first, strict=True):
            assert same_bits(got, want), "a repeat differs"
    vocab = 5000 if machine.dry else 151936
    logits = 3 * torch.randn(64 if not machine.dry else 3, vocab, device=machine.device)
    whole = mf.topk_confidence(logits, logits.argmax(-1), backend=BACKEND)
    for size in (1, 2) if machine.dry else (1, 2, 8, 31, 64):
        part = mf.topk_confidence(logits[:size], logits[:size].argmax(-1), backend=BACKEND)
        for got, want in zip(part, whole, strict=True):
            assert same_bits(got, want[:size]), f"a batch of {size} differs"
    # Of lm_head_confidence up to the batch where a library's product takes over.
    most = 3 if machine.dry else 64
    vocab = 300 if machine.dry else vocab
    keys = {key: x.to(machine.device) for key, x in keyed(most).items()}
    hidden, weight = lm_head_inputs(
        machine, most, vocab, 64 if machine.dry else 3584, torch.bfloat16
    )
    for options in ({}, {"temperature": 0.7, "top_p": 0.95}):
        whole = mf.lm_head_confidence(hidden, weight, **options, **keys, backend=BACKEND)
        for size in (1, 2) if machine.dry else (1, 2, 8, 31, 64):
            own = {key: x[:size] for key, x in keys.items()}
            part = mf.lm_head_confidence(hidden[:size], weight, **options, **own, backend=BACKEND)
            for got, want in zip(part, whole, strict=True):
                assert same_bits(got, want[:size]), f"a batch of {size} differs"
    return [{"case": "repeats and batch sizes, bit for bit", "repeats": rounds}]
