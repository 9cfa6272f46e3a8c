"""lm_head_confidence over shards of the vocabulary gives the result of the whole."""

import re

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from safetensors.torch import load_file, save_file

import marco_fast as mf
from marco_fast import ops
from tests.support.confidence import as_product, assert_same_bits, random_product
from tests.support.draws import OPTIONS, check_draws, keyed, options_of
from tests.support.hostile import logits_of
from tests.support.shards import DRAWS, SHARDS, Cut, assert_same_result

BACKENDS = ["cpu", "torch"]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_shards_give_the_result_of_the_whole(backend, shards, name):
    hidden, weight = random_product(24, 40, 700, torch.bfloat16)
    bias, keys = torch.randn(700), keyed(24)
    got = Cut(hidden, weight, SHARDS[shards], bias).merged(keys, backend, **options_of(name))
    want = ops.lm_head_confidence(
        hidden, weight, bias=bias, **options_of(name), **keys, backend=backend
    )
    # One u in 24 may lie within rounding of one of 700 boundaries.
    assert_same_result(got, want, most_other_tokens=1)
    logits = hidden.double() @ weight.double().T + bias.double()
    check_draws(logits, got.token_ids, keys, options_of(name))


@pytest.mark.parametrize("name", ["plain", "greedy", "top_p", "wide top_p", "top_k 100", "all"])
@pytest.mark.parametrize("kind", ["ties", "equal", "zeros"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_across_shards_follow_the_ids(backend, kind, name):
    hidden, weight = as_product(logits_of(kind, 6, 700))
    keys = keyed(6)
    got = Cut(hidden, weight, SHARDS[8]).merged(keys, backend, **options_of(name))
    want = ops.lm_head_confidence(hidden, weight, **options_of(name), **keys)
    assert_same_result(got, want, most_other_tokens=1)


@pytest.mark.parametrize("name", ["plain", "greedy", "cool", "wide top_p", "top_k 7", "min_p 1"])
@pytest.mark.parametrize("kind", ["nan", "inf", "few", "masked"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_anything_in_any_shard(backend, kind, name):
    """NaN and infinities in the weights are those of the logits, where H is 1."""
    for row, logits in enumerate(logits_of(kind, 6, 700).split(1)):
        hidden, weight = as_product(logits)
        keys = keyed(1, row)
        for sizes in SHARDS.values():
            got = Cut(hidden, weight, sizes).merged(keys, backend, **options_of(name))
            want = ops.lm_head_confidence(hidden, weight, **options_of(name), **keys)
            assert_same_result(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_a_token(backend):
    hidden, weight = torch.ones(2, 1), torch.full((700, 1), -torch.inf)
    got = Cut(hidden, weight, SHARDS[3]).merged(keyed(2), backend)
    assert got.token_ids.tolist() == [-1, -1]
    assert got.status.tolist() == [4, 4]
    assert (got.lse == -torch.inf).all()
    assert (got.confidence == 0).all()
    assert (got.topk_ids == -1).all()


@pytest.mark.parametrize("denominator", ["top_k", "union"])
@pytest.mark.parametrize("score", ["raw", "tempered"])
@pytest.mark.parametrize("top_k", [1, 5, 30])
def test_scores(top_k, score, denominator):
    hidden, weight = random_product(20, 30, 700, torch.float32)
    options = {"top_k": top_k, "score": score, "denominator": denominator}
    for name in ("hot", "top_p", "top_k 100"):
        got = Cut(hidden, weight, SHARDS[3]).merged(keyed(20), **options_of(name), **options)
        want = ops.lm_head_confidence(hidden, weight, **options_of(name), **keyed(20), **options)
        assert_same_result(got, want, most_other_tokens=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_at_a_temperature_that_draws_the_largest(backend):
    hidden, weight = as_product(logits_of("normal", 5, 700))
    options = {"temperature": 1e-6, "score": "tempered"}
    got = Cut(hidden, weight, SHARDS[3]).merged(keyed(5), backend, **options)
    want = ops.lm_head_confidence(hidden, weight, **options, **keyed(5))
    assert_same_result(got, want)


def test_rounded_logits():
    hidden, weight = as_product(logits_of("normal", 6, 700))
    cut = Cut(hidden, weight, SHARDS[2], round_logits=torch.bfloat16)
    for name in ("plain", "wide top_p"):
        got = cut.merged(keyed(6), **options_of(name))
        want = ops.lm_head_confidence(
            hidden, weight, round_logits=torch.bfloat16, **options_of(name), **keyed(6)
        )
        assert_same_result(got, want)


def test_candidates_ask_for_no_logits():
    hidden, weight = as_product(logits_of("peaked", 8, 700))
    cut = Cut(hidden, weight, SHARDS[8])
    for name in ("greedy", "top_p", "top_k 7", "min_p 1", "narrow top_p"):
        cut.merged(keyed(8), **options_of(name))
    assert cut.asked == []


def test_an_unfiltered_row_asks_one_shard():
    hidden, weight = random_product(30, 40, 700, torch.float32)
    cut = Cut(hidden, weight, SHARDS[8])
    got = cut.merged(keyed(30), temperature=0.7)
    rows = sorted(row for _, some in cut.asked for row in some)
    assert rows == list(range(30))
    ends = torch.tensor(SHARDS[8]).cumsum(0)
    for shard, some in cut.asked:
        for row in some:
            assert torch.searchsorted(ends, int(got.token_ids[row]), right=True) == shard


def test_a_wide_nucleus_asks_every_shard_for_its_row():
    logits = logits_of("peaked", 3, 700)
    logits[1] = 0.0
    cut = Cut(*as_product(logits), SHARDS[3])
    cut.merged(keyed(3), top_p=0.9)
    assert cut.asked == [(0, [1]), (1, [1]), (2, [1])]


def test_rows_with_options_of_their_own():
    names = [*OPTIONS]
    hidden, weight = random_product(len(names), 40, 700, torch.float32)
    values = torch.tensor([OPTIONS[name] for name in names]).T
    columns = dict(zip(DRAWS, values, strict=True))
    columns["sample_top_k"] = columns["sample_top_k"].int()
    keys = keyed(len(names))
    got = Cut(hidden, weight, SHARDS[3]).merged(keys, **columns)
    assert_same_result(got, ops.lm_head_confidence(hidden, weight, **columns, **keys), 1)


def test_paths_count_each_row_once():
    hidden, weight = random_product(9, 20, 700, torch.float32)
    sums, counts = torch.arange(9) * 2**50, torch.arange(9, dtype=torch.int32)
    active = torch.arange(9) % 3 != 1
    paths = {"path_sums": sums.clone(), "path_counts": counts.clone(), "active": active}
    got = Cut(hidden, weight, SHARDS[2]).merged(keyed(9), top_p=0.99, **paths)
    added = torch.where(active, (got.confidence.double() * 2.0**40).round().long(), 0)
    assert torch.equal(paths["path_sums"], sums + added)
    assert torch.equal(paths["path_counts"], counts + active.int())


def serve_rank(rank: int, folder: str, name: str) -> None:
    """One process of three, which has one shard of the weight and talks to the others."""
    sizes = SHARDS[3]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(sizes)
    )
    hidden, weight = random_product(12, 40, 700, torch.float32)
    begins = [sum(sizes[:shard]) for shard in range(len(sizes))]
    mine = weight.split(sizes)[rank]
    own = ops.lm_head_records(hidden, mine, begins[rank], 700, **options_of(name))
    gathered = []
    for field in own[:6]:
        parts = [torch.empty_like(field) for _ in sizes]
        torch.distributed.all_gather(parts, field)
        gathered.append(parts)
    records = [
        mf.LMHeadRecords(*fields, begin, size, 700)
        for *fields, begin, size in zip(*gathered, begins, sizes, strict=True)
    ]

    def logits_of(shard: int, rows: torch.Tensor) -> torch.Tensor:
        logits = hidden[rows] @ mine.T if shard == rank else torch.empty(len(rows), sizes[shard])
        torch.distributed.broadcast(logits, shard)
        return logits

    got = ops.merge_records(records, logits_of, **options_of(name), **keyed(12))
    save_file(got._asdict(), f"{folder}/{rank}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["cool", "wide top_p"])
def test_ranks_of_a_tensor_parallel_group(name, tmp_path):
    """Every rank has one shard, and ends with the same bits: the result of the whole."""
    torch.multiprocessing.spawn(serve_rank, (str(tmp_path), name), nprocs=3)
    files = [tmp_path / f"{rank}.safetensors" for rank in range(3)]
    results = [mf.SampledTokens(**load_file(file)) for file in files]
    for other in results[1:]:
        assert_same_bits(other, results[0])
    hidden, weight = random_product(12, 40, 700, torch.float32)
    want = ops.lm_head_confidence(hidden, weight, **options_of(name), **keyed(12))
    assert_same_result(results[0], want, most_other_tokens=1)


def test_no_rows():
    got = Cut(torch.zeros(0, 8), torch.zeros(700, 8), SHARDS[2]).merged(keyed(0))
    assert got.topk_ids.shape == (0, 5)


def test_bad_shards():
    hidden, weight = torch.zeros(2, 8), torch.zeros(700, 8)
    for begin, vocab, told in ((-1, 700, "[-1, 699)"), (1, 700, "[1, 701)"), (0, 600, "[0, 700)")):
        with pytest.raises(ValueError, match=f"^expected a shard inside .*{re.escape(told)}$"):
            ops.lm_head_records(hidden, weight, begin, vocab)
    with pytest.raises(ValueError, match="top_k"):
        ops.lm_head_records(hidden, weight, 0, 700, top_k=701)
    records = Cut(hidden, weight, SHARDS[3]).records()
    for bad, told in (
        ([], "at least one shard"),
        (records[1:], "a shard that begins at 0, got 1"),
        ([records[0], records[2]], "a shard that begins at 1, got 501"),
        (records[:2], "shards of all 700 tokens, got 501"),
    ):
        with pytest.raises(ValueError, match=f"^expected .*{told}"):
            ops.merge_records(bad, None, **keyed(2))
    with pytest.raises(ValueError, match=r"^expected top_k <= 16, as the records hold, got 17$"):
        ops.merge_records(records, None, **keyed(2), top_k=17)
    with pytest.raises(ValueError, match=r"seeds \[2\]"):
        ops.merge_records(records, None, **keyed(3))
