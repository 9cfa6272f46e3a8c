"""Hostile inputs: logits that break kernels, memory that must not be touched."""

import ctypes
import mmap

import torch

__all__ = [
    "DTYPES",
    "LOGIT_KINDS",
    "against_guard",
    "logits_of",
    "padded_rows",
    "poisoned",
    "sparse_rows",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_guarded: list[mmap.mmap] = []  # a guarded mapping must outlive its tensors


def _normal(rows: int, vocab: int, rng: torch.Generator) -> torch.Tensor:
    return 3 * torch.randn(rows, vocab, generator=rng)


def _set(x: torch.Tensor, share: float, value: float, rng: torch.Generator) -> torch.Tensor:
    return x.masked_fill(torch.rand(x.shape, generator=rng) < share, value)


def _ties(rows: int, vocab: int, rng: torch.Generator) -> torch.Tensor:
    return torch.randint(-3, 4, (rows, vocab), generator=rng).float()


def _equal(rows: int, vocab: int, rng: torch.Generator) -> torch.Tensor:
    return torch.full((rows, vocab), 2.5)


def _zeros(rows: int, vocab: int, rng: torch.Generator) -> torch.Tensor:
    """+0 and -0, which are equal: only the id orders them."""
    return torch.where(torch.rand(rows, vocab, generator=rng) < 0.5, 0.0, -0.0)


def _masked(rows: int, vocab: int, rng: torch.Generator) -> torch.Tensor:
    return _set(_normal(rows, vocab, rng), 0.9, -torch.inf, rng)


def _few(rows: int, vocab: int, rng: torch.Generator) -> torch.Tensor:
    """Row b has min(b, vocab) logits above -inf: fewer than k, and none in row 0."""
    x = torch.full((rows, vocab), -torch.inf)
    for b in range(rows):
        ids = torch.randperm(vocab, generator=rng)[:b]
        x[b, ids] = torch.randn(len(ids), generator=rng)
    return x


def _nan(rows: int, vocab: int, rng: torch.Generator) -> torch.Tensor:
    x = _set(_normal(rows, vocab, rng), 0.05, torch.nan, rng)
    x[0] = torch.nan
    x[-1, -1] = torch.nan
    return x


def _inf(rows: int, vocab: int, rng: torch.Generator) -> torch.Tensor:
    """Row b has min(b + 1, vocab) entries of +inf, every other row a NaN as well."""
    x = _masked(rows, vocab, rng)
    for b in range(rows):
        x[b, torch.randperm(vocab, generator=rng)[: b + 1]] = torch.inf
        if b % 2 and vocab > 1:
            x[b, 0] = torch.nan
    return x


def _peaked(rows: int, vocab: int, rng: torch.Generator) -> torch.Tensor:
    """One logit far above the rest: logprobs near 0 and near -80."""
    x = torch.randn(rows, vocab, generator=rng)
    x[torch.arange(rows), torch.randint(0, vocab, (rows,), generator=rng)] = 80.0
    return x


def _shifted(rows: int, vocab: int, rng: torch.Generator) -> torch.Tensor:
    """Far from 0 on either side: a softmax without its maximum overflows or underflows."""
    offsets = torch.linspace(-30000, 30000, rows)[:, None]
    return _normal(rows, vocab, rng) + offsets


def _extreme(rows: int, vocab: int, rng: torch.Generator) -> torch.Tensor:
    """The largest finite magnitudes that every dtype holds, and subnormals."""
    values = torch.tensor([65504.0, -65504.0, 1e-7, -1e-7, 0.0])
    return values[torch.randint(0, len(values), (rows, vocab), generator=rng)]


def _ascending(rows: int, vocab: int, rng: torch.Generator) -> torch.Tensor:
    """Every entry beats all before it: the worst order for a running k-th value."""
    return torch.linspace(-8, 8, vocab).expand(rows, vocab).clone()


LOGIT_KINDS = {
    "normal": _normal,
    "ties": _ties,
    "equal": _equal,
    "zeros": _zeros,
    "masked": _masked,
    "few": _few,
    "nan": _nan,
    "inf": _inf,
    "peaked": _peaked,
    "shifted": _shifted,
    "extreme": _extreme,
    "ascending": _ascending,
}


def logits_of(
    kind: str, rows: int, vocab: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> torch.Tensor:
    """[rows, vocab] logits of a kind, rounded to dtype."""
    rng = torch.Generator().manual_seed(seed * 1000 + 7)
    return LOGIT_KINDS[kind](rows, vocab, rng).to(dtype)


def padded_rows(x: torch.Tensor, padding: int = 13, fill: float = torch.nan) -> torch.Tensor:
    """The same rows `padding` elements further apart, `fill` between them and around them."""
    rows, vocab = x.shape
    memory = torch.full((rows + 1, vocab + padding), fill, dtype=x.dtype)
    view = memory.flatten()[3:][: rows * (vocab + padding)].view(rows, vocab + padding)[:, :vocab]
    view.copy_(x)
    return view


def poisoned(like: torch.Tensor) -> torch.Tensor:
    """An output full of values that no operation may leave: NaN, or the smallest integer."""
    if like.dtype.is_floating_point:
        return torch.full_like(like, torch.nan)
    return torch.full_like(like, torch.iinfo(like.dtype).min)


def sparse_rows(rows: int, vocab: int, stride: int, dtype: torch.dtype) -> torch.Tensor:
    """[rows, vocab] zeros, `stride` elements apart, in memory that is only reserved.

    Address arithmetic in 32 bits leaves the rows; no more pages are touched than the rows have.
    """
    size = ((rows - 1) * stride + vocab) * dtype.itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # NORESERVE
    flat = torch.frombuffer(memory, dtype=dtype)
    return flat.as_strided((rows, vocab), (stride, 1))


def against_guard(x: torch.Tensor) -> torch.Tensor:
    """A copy of x whose last byte is the last before a page that may not be touched."""
    if x.numel() == 0:
        return x.clone()
    size = x.numel() * x.element_size()
    page = mmap.PAGESIZE
    body = (size + page - 1) // page * page
    memory = mmap.mmap(-1, body + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(start + body), page, 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    flat = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=body - size)
    _guarded.append(memory)
    return flat.view(x.shape).copy_(x)
