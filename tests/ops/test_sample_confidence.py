"""sample_confidence on every backend of a CPU: draws, filters, scores and path sums."""

import pytest
import torch

from marco_fast import ops
from marco_fast.ops import reference
from tests.support.confidence import assert_same_bits, check_sampled
from tests.support.draws import OPTIONS, keyed, options_of, sampling_of
from tests.support.hostile import DTYPES, LOGIT_KINDS, logits_of, padded_rows, poisoned, sparse_rows


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", LOGIT_KINDS)
@pytest.mark.usefixtures("isa")
def test_against_brute_force(kind, name):
    for vocab, dtype in ((1, torch.float32), (6, torch.float16), (700, torch.bfloat16)):
        check_sampled(logits_of(kind, 6, vocab, dtype), name, top_k=min(5, vocab))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks(dtype, name):
    for vocab in (4095, 4096, 4097, 8500):
        check_sampled(logits_of("normal", 3, vocab, dtype, seed=vocab), name, seed=vocab)


@pytest.mark.parametrize("name", ["plain", "wide top_p", "low min_p", "top_k 300", "all, wide"])
@pytest.mark.usefixtures("isa")
def test_full_vocabulary(name):
    check_sampled(logits_of("normal", 2, 151936, torch.bfloat16), name)


@pytest.mark.parametrize("denominator", ["top_k", "union"])
@pytest.mark.parametrize("score", ["raw", "tempered"])
@pytest.mark.parametrize("top_k", [1, 5, 32, 1500])
@pytest.mark.parametrize("kind", ["normal", "ties", "nan", "inf", "few"])
def test_scores(kind, top_k, score, denominator):
    for name in ("plain", "hot", "top_p", "top_k 100"):
        logits = logits_of(kind, 8, 1500)
        check_sampled(logits, name, top_k=top_k, score=score, denominator=denominator)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", ["normal", "ties", "nan", "inf", "few"])
def test_backend_torch(kind, name):
    logits = logits_of(kind, 6, 500)
    check_sampled(logits, name, backend="torch")
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
    from marco_fast.ops import cpu_backend as cpu

    logits, keys = logits_of(kind, 6, 321), keyed(6)
    want = ops.sample_confidence(logits, **keys)
    outputs = type(want)(*map(poisoned, want))
    cpu.sample_confidence(logits, sampling_of("plain", keys), outputs)
    assert_same_bits(outputs, want)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("kind", ["normal", "few", "nan", "peaked"])
def test_path_sums(kind, backend):
    logits = logits_of(kind, 9, 400)
    sums = torch.arange(9) * 2**50
    counts = torch.arange(9, dtype=torch.int32)
    active = torch.arange(9) % 3 != 1
    paths = {"path_sums": sums.clone(), "path_counts": counts.clone(), "active": active}
    hot = {"temperature": 50.0, "backend": backend, **keyed(9)}  # confidences down to 2^-30
    got = ops.sample_confidence(logits, **hot, **paths)
    added = (got.confidence.double() * 2.0**40).round().long()
    assert torch.equal(paths["path_sums"], sums + torch.where(active, added, 0))
    assert torch.equal(paths["path_counts"], counts + active.int())
    everyone = {"path_sums": sums.clone(), "path_counts": counts.clone()}
    ops.sample_confidence(logits, **hot, **everyone)
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
    for top_p, kept in ((0.5, 5), (0.500001, 6), (0.05, 1), (0.099, 1)):
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
