"""sample_confidence on every backend of a CPU: draws, filters, scores and path sums."""

import itertools
import math

import numpy as np
import pytest
import torch

from marco_fast import ops
from marco_fast.ops import reference
from marco_fast.ops.philox import philox4x32, philox_uniform
from tests.compare import assert_lse_close
from tests.inputs import DTYPES, LOGIT_KINDS, logits_of, padded_rows, poisoned, sparse_rows
from tests.test_topk_confidence import assert_same_bits, assert_scores

# A draw may differ from the float64 CDF only where u lies this close to a boundary of it. The masses
# are float32: 2 ulp each, and up to 20 * 2^-24 where an exponent is divided by a temperature.
CDF_ATOL = 2e-6

# temperature, top_p, min_p, sample_top_k
OPTIONS = {
    "plain": (1.0, 1.0, 0.0, 0),
    "cool": (0.7, 1.0, 0.0, 0),
    "hot": (3.0, 1.0, 0.0, 0),
    "greedy": (0.0, 0.5, 0.1, 3),
    "top_p": (1.0, 0.9, 0.0, 0),
    "wide top_p": (2.0, 0.97, 0.0, 0),
    "nearly all": (1.0, 0.99999, 0.0, 0),
    "narrow top_p": (0.7, 0.05, 0.0, 0),
    "min_p": (0.8, 1.0, 0.05, 0),
    "low min_p": (2.0, 1.0, 1e-4, 0),
    "min_p 1": (1.0, 1.0, 1.0, 0),
    "top_k 1": (1.0, 1.0, 0.0, 1),
    "top_k 7": (1.3, 1.0, 0.0, 7),
    "top_k 100": (1.3, 1.0, 0.0, 100),
    "top_k 300": (1.3, 1.0, 0.0, 300),
    "all": (0.9, 0.9, 0.01, 50),
    "all, wide": (4.0, 0.99, 1e-3, 700),
}


def options_of(name: str) -> dict[str, float]:
    names = ("temperature", "top_p", "min_p", "sample_top_k")
    return dict(zip(names, OPTIONS[name], strict=True))


def keyed(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed + 1)
    return {
        "seeds": torch.randint(-(2**63), 2**63 - 1, (rows,), generator=rng),
        "positions": torch.randint(0, 100000, (rows,), generator=rng),
    }


def kept_by_hand(z, temperature, top_p, min_p, sample_top_k) -> list[tuple[int, float]]:
    """(id, mass) of what the filters keep of one float64 row without NaN, in rank order."""
    ranked = sorted((i for i in range(len(z)) if z[i] > -math.inf), key=lambda i: (-z[i], i))
    best = z[ranked[0]]

    def mass(i: int) -> float:
        return 1.0 if z[i] == best else math.exp((z[i] - best) / temperature)

    total = math.fsum(mass(i) for i in ranked)
    kept: list[tuple[int, float]] = []
    for rank, i in enumerate(ranked):
        reached = top_p < 1 and math.fsum(m for _, m in kept) >= top_p * total
        if rank > 0 and (reached or mass(i) < min_p or (sample_top_k > 0 and rank >= sample_top_k)):
            break
        kept.append((i, mass(i)))
    return kept


def distance(kept: dict[int, float], token: int, u: float) -> float:
    """How far u lies outside the interval of [0, 1) that draws `token`; inf where it has none."""
    if kept.get(token, 0.0) == 0.0:
        return math.inf
    total = math.fsum(kept.values())
    below = math.fsum(m for i, m in kept.items() if i < token) / total
    return max(below - u, u - below - kept[token] / total, 0.0)


def check_draws(logits: torch.Tensor, token_ids: torch.Tensor, keys, options) -> None:
    """Every token is one that float64 draws for a u, and a top_p, within CDF_ATOL of the real one."""
    rows = logits.double().masked_fill(logits.isnan(), -math.inf).tolist()
    uniforms = philox_uniform(keys["seeds"], keys["positions"]).tolist()
    values = dict(zip(options, map(float, np.float32([*options.values()])), strict=True))
    for z, token, u in zip(rows, token_ids.tolist(), uniforms, strict=True):
        if max(z) == -math.inf:
            assert token == -1
            continue
        if values["temperature"] < 1e-5:
            assert token == z.index(max(z))
            continue
        near = []
        for shift in (0.0, -CDF_ATOL, CDF_ATOL):
            shifted = {**values, "top_p": values["top_p"] + shift if values["top_p"] < 1 else 1.0}
            near.append(distance(dict(kept_by_hand(z, **shifted)), token, u))
            if near[-1] <= CDF_ATOL:
                break
        assert min(near) <= CDF_ATOL, f"token {token} at u = {u}: off by {near}"


def check(logits, name: str, backend: str = "cpu", seed: int = 0, **options) -> None:
    keys = keyed(len(logits), seed)
    got = ops.sample_confidence(logits, **options_of(name), **keys, backend=backend, **options)
    check_draws(logits, got.token_ids, keys, options_of(name))
    tempered = options.get("score") == "tempered"
    scoring = {
        "top_k": options.get("top_k", 5),
        "temperature": options_of(name)["temperature"] if tempered else 1.0,
        "denominator": options.get("denominator", "top_k"),
    }
    ids = got.token_ids.long()
    want = reference.topk_confidence(logits, ids, **scoring)
    plain = reference.topk_confidence(logits, ids, dtype=torch.float32, **scoring)
    status = want.status & ~8  # a row without a token scores -1, which is no mistake here
    assert_scores(got, want._replace(status=status), plain, backend)
    assert_lse_close(got.entropy, entropy_of(logits, scoring["temperature"]))


def entropy_of(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    z = logits.double().masked_fill(logits.isnan(), -torch.inf)
    infinite = (z == torch.inf).any(-1, keepdim=True)
    z = torch.where(infinite, torch.where(z == torch.inf, 0.0, -torch.inf), z / temperature)
    p = z.softmax(-1).nan_to_num(0.0)
    return torch.special.entr(p).sum(-1)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", LOGIT_KINDS)
@pytest.mark.usefixtures("isa")
def test_against_brute_force(kind, name):
    for vocab, dtype in ((1, torch.float32), (6, torch.float16), (700, torch.bfloat16)):
        check(logits_of(kind, 6, vocab, dtype), name, top_k=min(5, vocab))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks(dtype, name):
    for vocab in (4095, 4096, 4097, 8500):
        check(logits_of("normal", 3, vocab, dtype, seed=vocab), name, seed=vocab)


@pytest.mark.parametrize("name", ["plain", "wide top_p", "low min_p", "top_k 300", "all, wide"])
@pytest.mark.usefixtures("isa")
def test_full_vocabulary(name):
    check(logits_of("normal", 2, 151936, torch.bfloat16), name)


@pytest.mark.parametrize("denominator", ["top_k", "union"])
@pytest.mark.parametrize("score", ["raw", "tempered"])
@pytest.mark.parametrize("top_k", [1, 5, 32])
@pytest.mark.parametrize("kind", ["normal", "ties", "nan", "inf", "few"])
def test_scores(kind, top_k, score, denominator):
    for name in ("plain", "hot", "top_p", "top_k 100"):
        logits = logits_of(kind, 8, 1500)
        check(logits, name, top_k=top_k, score=score, denominator=denominator)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", ["normal", "ties", "nan", "inf", "few"])
def test_backend_torch(kind, name):
    logits = logits_of(kind, 6, 500)
    check(logits, name, backend="torch")
    both = [
        ops.sample_confidence(logits, **options_of(name), **keyed(6), backend=backend)
        for backend in ("cpu", "torch")
    ]
    assert torch.equal(both[0].token_ids, both[1].token_ids)


@pytest.mark.parametrize("name", OPTIONS)
def test_reference_draws_the_same_tokens(name):
    logits = logits_of("normal", 200, 300)
    got = ops.sample_confidence(logits, **options_of(name), **keyed(200))
    want = reference.sample_confidence(logits, **options_of(name), **keyed(200))
    # 200 draws lie within CDF_ATOL of one of 300 boundaries with probability 0.1 at most: one may.
    assert (got.token_ids != want.token_ids).sum() <= 1


def assert_fits(tokens: torch.Tensor, probability: torch.Tensor) -> None:
    """Chi-square of draws against probabilities, cells of 10 or more expected; 5 sigma."""
    counts = torch.bincount(tokens.long(), minlength=len(probability)).double()
    assert counts[probability == 0].sum() == 0, "a token without probability was drawn"
    expected = probability * len(tokens)
    large = expected >= 10
    cells = [(counts[large], expected[large])]
    if expected[~large].sum() >= 10:
        cells.append((counts[~large].sum()[None], expected[~large].sum()[None]))
    statistic = sum(((seen - mean) ** 2 / mean).sum().item() for seen, mean in cells)
    freedom = sum(len(mean) for _, mean in cells) - 1
    assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom) + 5, (statistic, freedom)


@pytest.mark.parametrize("by", ["seeds", "positions", "high words"])
@pytest.mark.parametrize(
    "name", ["plain", "cool", "top_p", "wide top_p", "min_p", "top_k 7", "all"]
)
@pytest.mark.parametrize(("vocab", "dtype"), [(12, torch.float32), (900, torch.bfloat16)])
def test_chi_square(vocab, dtype, name, by):
    draws = 100_000
    row = logits_of("normal", 1, vocab, dtype) / 1.5
    numbers, fixed = torch.arange(draws), torch.full((draws,), 7)
    keys = {"seeds": numbers, "positions": fixed}
    if by == "positions":
        keys = {"seeds": fixed, "positions": numbers}
    if by == "high words":
        keys = {"seeds": numbers << 32, "positions": (numbers % 3) << 33}
    got = ops.sample_confidence(row.expand(draws, vocab), **options_of(name), **keys)
    probability = torch.zeros(vocab, dtype=torch.float64)
    values = dict(zip(options_of(name), map(float, np.float32(OPTIONS[name])), strict=True))
    for i, mass in kept_by_hand(row[0].double().tolist(), **values):
        probability[i] = mass
    assert_fits(got.token_ids, probability / probability.sum())


def test_neighbouring_draws_are_independent():
    draws, vocab = 100_000, 8
    row = torch.zeros(1, vocab).expand(draws, vocab)
    for seeds, positions in (
        (torch.zeros(draws, dtype=torch.int64), torch.arange(draws)),
        (torch.arange(draws), torch.zeros(draws, dtype=torch.int64)),
    ):
        tokens = ops.sample_confidence(row, seeds=seeds, positions=positions).token_ids
        pairs = tokens[:-1] * vocab + tokens[1:]
        assert_fits(pairs, torch.full((vocab * vocab,), vocab**-2.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    """The published known-answer vectors of Philox4x32-10."""
    got = philox4x32([torch.tensor(x) for x in counter], [torch.tensor(x) for x in key])
    assert [f"{int(word):08x}" for word in got] == words.split()


def test_philox_is_the_same_in_cpp():
    from marco_fast import _C

    edges = [0, 1, -1, 2**31, 2**32 - 1, 2**32, -(2**63), 2**63 - 1, 0x123456789ABCDEF]
    pairs = list(itertools.product(edges, edges))
    seeds, positions = (torch.tensor(values) for values in zip(*pairs, strict=True))
    got = [_C.philox_uniform(seed, position) for seed, position in pairs]
    assert philox_uniform(seeds, positions).tolist() == got
    assert len(set(got)) == len(pairs)
    assert 0 <= min(got) <= max(got) < 1


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.usefixtures("isa")
def test_a_draw_does_not_depend_on_its_batch(name):
    """Neighbours have other options: their filters must not change how a row is drawn."""
    vocab = 5000
    logits = torch.cat([logits_of(kind, 2, vocab) for kind in LOGIT_KINDS])
    keys, rows = keyed(len(logits)), len(logits)
    columns = torch.tensor([OPTIONS[name], *OPTIONS.values()]).T
    mixed = columns[:, torch.arange(rows) % columns.shape[1]]
    mixed[:, ::2] = torch.tensor(OPTIONS[name])[:, None]
    options = dict(zip(options_of(name), mixed, strict=True))
    options["sample_top_k"] = options["sample_top_k"].int()
    together = ops.sample_confidence(logits, **options, **keys)
    for b in range(0, rows, 2):
        own = {key: value[b : b + 1] for key, value in keys.items()}
        alone = ops.sample_confidence(logits[b : b + 1], **options_of(name), **own)
        assert_same_bits(alone, type(together)(*[field[b : b + 1] for field in together]))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", ["normal", "ties", "inf"])
def test_thread_counts_give_the_same_bits(kind, name):
    logits, keys, before = logits_of(kind, 3, 50001), keyed(3), torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(ops.sample_confidence(logits, **options_of(name), **keys))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_give_the_same_bits(dtype, name):
    from marco_fast import _C

    logits, before, results = logits_of("normal", 4, 9001, dtype), _C.isa(), []
    for isa in _C.supported_isas():
        _C.set_isa(isa)
        results.append(ops.sample_confidence(logits, **options_of(name), **keyed(4)))
    _C.set_isa(before)
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.parametrize("top_k", [1, 5, 32])
def test_the_draw_does_not_depend_on_what_is_scored(top_k):
    logits = logits_of("normal", 300, 2000)
    for name in ("top_p", "wide top_p", "all", "top_k 100"):
        want = ops.sample_confidence(logits, **options_of(name), **keyed(300)).token_ids
        for score in ("raw", "tempered"):
            got = ops.sample_confidence(
                logits, **options_of(name), **keyed(300), top_k=top_k, score=score
            )
            # The sums behind u differ by rounding between the two scores, never by more.
            assert (got.token_ids != want).sum() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("isa")
def test_only_one_token_has_mass(dtype):
    for vocab, token in ((1, 0), (64, 63), (5000, 4097)):
        logits = torch.full((50, vocab), -torch.inf, dtype=dtype)
        logits[:, token] = -3.0
        for name in OPTIONS:
            got = ops.sample_confidence(logits, **options_of(name), **keyed(50), top_k=1)
            assert (got.token_ids == token).all()


@pytest.mark.parametrize("kind", LOGIT_KINDS)
@pytest.mark.usefixtures("isa")
def test_every_output_is_written(kind):
    from marco_fast.ops import cpu

    logits, keys = logits_of(kind, 6, 321), keyed(6)
    want = ops.sample_confidence(logits, **keys)
    outputs = type(want)(*map(poisoned, want))
    rows = [torch.full((6,), value) for value in (1.0, 1.0, 0.0)]
    top_k = torch.zeros(6, dtype=torch.int32)
    cpu.sample_confidence(
        logits, *rows, top_k, keys["seeds"], keys["positions"], False, False, *[None] * 3, *outputs
    )
    assert_same_bits(outputs, want)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("kind", ["normal", "few", "nan", "peaked"])
def test_path_sums(kind, backend):
    logits = logits_of(kind, 9, 400)
    sums = torch.arange(9) * 2**50
    counts = torch.arange(9, dtype=torch.int32)
    active = torch.arange(9) % 3 != 1
    paths = {"path_sums": sums.clone(), "path_counts": counts.clone(), "active": active}
    got = ops.sample_confidence(logits, **keyed(9), **paths, backend=backend)
    added = (got.confidence.double() * 2.0**40).round().long()
    assert torch.equal(paths["path_sums"], sums + torch.where(active, added, 0))
    assert torch.equal(paths["path_counts"], counts + active.int())
    everyone = {"path_sums": sums.clone(), "path_counts": counts.clone()}
    ops.sample_confidence(logits, **keyed(9), **everyone, backend=backend)
    assert torch.equal(everyone["path_sums"], sums + added)
    assert torch.equal(everyone["path_counts"], counts + 1)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_options_as_tensors_of_any_dtype(backend):
    logits = logits_of("normal", 4, 300)
    columns = {
        "temperature": torch.tensor([0.5, 1.0, 0.0, 2.0]),
        "top_p": torch.tensor([0.5, 1.0, 0.75, 0.25]),
        "min_p": torch.tensor([0.0, 0.125, 0.5, 0.0]),
        "sample_top_k": torch.tensor([0, 3, 1, 200]),
    }
    together = ops.sample_confidence(logits, **keyed(4), **columns, backend=backend)
    strided = {name: torch.stack([x, x], 1).double()[:, 0] for name, x in columns.items()}
    strided["sample_top_k"] = columns["sample_top_k"].int()
    assert_same_bits(
        ops.sample_confidence(logits, **keyed(4), **strided, backend=backend), together
    )
    for b in range(4):
        own = {name: x[b].item() for name, x in columns.items()}
        keys = {name: x[b : b + 1] for name, x in keyed(4).items()}
        alone = ops.sample_confidence(logits[b : b + 1], **keys, **own, backend=backend)
        assert alone.token_ids[0] == together.token_ids[b]


def test_equal_probabilities_at_the_top_p_boundary():
    """Ten equal logits: half the mass is exactly five of them, the smaller ids."""
    row = torch.full((1, 10), 1.5).expand(5000, 10)
    keys = {"seeds": torch.arange(5000), "positions": torch.zeros(5000, dtype=torch.int64)}
    for top_p, kept in ((0.5, 5), (0.500001, 6), (0.05, 1), (0.1, 1)):
        got = ops.sample_confidence(row, top_p=top_p, **keys)
        assert sorted(set(got.token_ids.tolist())) == list(range(kept))


@pytest.mark.parametrize("dtype", DTYPES)
def test_padded_rows_are_not_read(dtype):
    logits = logits_of("normal", 5, 1003, dtype)
    for name in OPTIONS:
        packed = ops.sample_confidence(logits, **options_of(name), **keyed(5))
        padded = ops.sample_confidence(
            padded_rows(logits, fill=torch.inf), **options_of(name), **keyed(5)
        )
        assert_same_bits(padded, packed)


@pytest.mark.parametrize("name", ["plain", "cool", "wide top_p", "low min_p"])
@pytest.mark.usefixtures("isa")
def test_offsets_beyond_2_to_31(name):
    logits = sparse_rows(4, 5000, 2**30 - 64, torch.float32)
    logits.copy_(logits_of("normal", 4, 5000))
    assert_same_bits(
        ops.sample_confidence(logits, **options_of(name), **keyed(4)),
        ops.sample_confidence(logits.contiguous(), **options_of(name), **keyed(4)),
    )


def test_empty_batch():
    none = torch.empty(0, dtype=torch.int64)
    got = ops.sample_confidence(torch.empty(0, 10), seeds=none, positions=none, top_k=3)
    assert [len(field) for field in got] == [0] * 8


LOGITS = torch.zeros(2, 8)
KEYS = keyed(2)
FLOATS = torch.tensor([0.5, 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"expected temperature in \[0.0, .*\], got -0.1"),
        ({"temperature": torch.nan}, "expected temperature in"),
        ({"temperature": torch.inf}, "expected temperature in"),
        ({"temperature": FLOATS - 0.7}, "expected temperature in"),
        ({"temperature": FLOATS * torch.nan}, "expected temperature in"),
        ({"temperature": 0.0, "score": "tempered"}, "expected temperature in"),
        ({"temperature": FLOATS - 0.5, "score": "tempered"}, "expected temperature in"),
        ({"temperature": "0.7"}, "expected temperature as a number or a tensor, got str"),
        ({"temperature": True}, "expected temperature as a number or a tensor, got bool"),
        ({"temperature": FLOATS[:1]}, r"expected temperature \[2\], got shape \(1,\)"),
        ({"temperature": FLOATS.int()}, "expected temperature of torch.float64"),
        ({"top_p": 0.0}, "expected top_p in"),
        ({"top_p": 1.5}, "expected top_p in"),
        ({"top_p": FLOATS * 4}, "expected top_p in"),
        ({"min_p": -0.1}, "expected min_p in"),
        ({"min_p": 1.1}, "expected min_p in"),
        ({"sample_top_k": -1}, "expected sample_top_k in"),
        ({"sample_top_k": 1.5}, "expected sample_top_k as an integer"),
        ({"sample_top_k": FLOATS}, "expected sample_top_k of torch.int32 or torch.int64"),
        ({"sample_top_k": torch.tensor([1, 2**33])}, "expected sample_top_k in"),
        ({"seeds": KEYS["seeds"].int()}, "expected seeds of torch.int64, got torch.int32"),
        ({"positions": KEYS["positions"][:1]}, "expected positions"),
        ({"seeds": 3}, "expected seeds as a tensor, got int"),
        ({"top_k": 9}, "expected 1 <= top_k <= 8"),
        ({"score": "sampled"}, "expected score to be 'raw' or 'tempered', got 'sampled'"),
        ({"denominator": "all"}, "expected denominator to be"),
        ({"path_sums": torch.zeros(2)}, "expected path_sums of torch.int64"),
        ({"path_sums": torch.zeros(4, dtype=torch.int64)[::2]}, "expected path_sums contiguous"),
        ({"path_counts": torch.zeros(2, dtype=torch.int64)}, "expected path_counts of torch.int32"),
        ({"active": torch.ones(2)}, "expected active of torch.bool"),
        ({"active": torch.ones(3, dtype=torch.bool)}, r"expected active \[2\]"),
        ({"backend": "numpy"}, "expected backend to be one of"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ops.sample_confidence(LOGITS, **{**KEYS, **options})


def test_nothing_is_added_to_a_path_on_an_error():
    sums = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="active"):
        ops.sample_confidence(LOGITS, **KEYS, path_sums=sums, active=torch.ones(2))
    assert sums.tolist() == [0, 0]
