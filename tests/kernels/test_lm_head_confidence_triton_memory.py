"""Which logits the Triton lm_head_confidence writes to memory: few, and no neighbour's."""

import pytest
import torch

from marco_fast import ops
from tests.support.confidence import as_product
from tests.support.draws import keyed, options_of
from tests.support.hostile import logits_of

pytestmark = [
    pytest.mark.usefixtures("in_interpreter"),
    # NumPy warns of the infinities that a GPU computes with in silence.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def lm_head(hidden, weight, name):
    keys = keyed(len(hidden))
    return ops.lm_head_confidence(hidden, weight, **options_of(name), **keys, backend="triton")


@pytest.fixture
def stored(monkeypatch):
    """The launcher's last allocation [rows, vocab], poisoned: which logits go to memory."""
    empty, kept = torch.empty, []

    def remember(*sizes, **options):
        memory = empty(*sizes, **options)
        if memory.dtype == torch.float32 and memory.dim() == 2:
            kept[:] = [memory.fill_(torch.nan)]
        return memory

    monkeypatch.setattr(torch, "empty", remember)
    return kept


@pytest.mark.parametrize("name", ["greedy", "top_p", "top_k 7", "min_p 1"])
def test_candidates_leave_no_logits(stored, name):
    logits = logits_of("peaked", 3, 2000)
    lm_head(*as_product(logits), name)
    assert stored[0].shape == logits.shape
    assert stored[0].isnan().all()


def test_an_unfiltered_draw_stores_its_tile_alone(stored):
    logits = logits_of("normal", 3, 2000)
    got = lm_head(*as_product(logits), "plain")
    for row, values, token in zip(stored[0], logits, got.token_ids.tolist(), strict=True):
        there = (~row.isnan()).nonzero()[:, 0]
        assert token in there
        # Its own tile, and what other rows of the batch wanted is not written to this one.
        assert len(there) == 64
        assert torch.equal(row[there], values[there])


def test_a_wide_nucleus_stores_few_tiles(stored):
    """40 likely tokens far apart, of 6400: their tiles, and no logit of another."""
    logits = torch.randn(1, 6400) - 12
    likely = torch.arange(40) * 150 + 7
    logits[0, likely] = torch.randn(40)
    got = lm_head(*as_product(logits), "top_p")
    assert got.token_ids.item() in likely.tolist()
    there = stored[0][0] > -torch.inf
    assert there[likely].sum() >= 30
    assert there.sum() <= 40 * 64


def test_what_is_stored_of_a_row_does_not_depend_on_its_neighbours(stored):
    """A wide nucleus beside an unfiltered draw and another nucleus, in other tiles."""
    logits = torch.full((3, 1000), -12.0)
    for row, first in enumerate((0, 400, 700)):
        logits[row, first : first + 40] = torch.linspace(0, 1, 40)
    hidden, weight = as_product(logits)
    top_p = torch.tensor([0.9, 1.0, 0.95])
    keys = keyed(3)
    ops.lm_head_confidence(hidden, weight, top_p=top_p, **keys, backend="triton")
    together = stored[0].clone()
    for row in (0, 2):
        own = {key: value[row : row + 1] for key, value in keys.items()}
        ops.lm_head_confidence(
            hidden[row : row + 1], weight, top_p=top_p[row : row + 1], **own, backend="triton"
        )
        assert torch.equal(stored[0][0], together[row])
