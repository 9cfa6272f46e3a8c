"""A product of few rows in Triton, to be compared with the library's: would kernels of ours pay?

x [M, K] times weight [N, K] transposed. A program owns 64 rows, 128 columns and a part of K; it
reads both by the copy engine, keeps the sums in registers, and stores float32 partial sums where K
is split (a norm that follows would fold them), bfloat16 where it is not. Not part of the package.
"""

import torch
import triton
import triton.language as tl

from marco_fast.kernels import launch

__all__ = ["skinny_product"]

BLOCK_M, BLOCK_N, BLOCK_K = 64, 128, 128


@triton.jit(do_not_specialize=["rows", "inner", "splits"])
def skinny_kernel(
    x,  # [M, K] descriptor
    weight,  # [N, K] descriptor
    out_ptr,  # [splits, M, N] float32, or [M, N] bfloat16
    rows,
    columns,
    inner,
    splits,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    first_row, first_column = tl.program_id(1) * BLOCK_M, tl.program_id(0) * BLOCK_N
    split = tl.program_id(2)
    steps = tl.cdiv(inner, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(split * steps // splits, (split + 1) * steps // splits):
        a = x.load([first_row, step * BLOCK_K])
        b = weight.load([first_column, step * BLOCK_K])
        acc = tl.dot(a, b.T, acc)
    row = first_row + tl.arange(0, BLOCK_M)
    column = first_column + tl.arange(0, BLOCK_N)
    at = (split.to(tl.int64) * rows + row.to(tl.int64))[:, None] * columns + column[None, :]
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=mask)


def skinny_product(
    x: torch.Tensor, weight: torch.Tensor, splits: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """[M, N] bfloat16, or [splits, M, N] float32 partial sums where splits > 1.

    Args:
        x, weight: bfloat16, rows a multiple of 16 bytes apart.
        splits: parts of K, each summed by programs of its own.
        out: filled if given.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    (rows, inner), columns = x.shape, len(weight)
    if out is None:
        shape = (rows, columns) if splits == 1 else (splits, rows, columns)
        dtype = torch.bfloat16 if splits == 1 else torch.float32
        out = torch.empty(shape, dtype=dtype, device=x.device)
    with launch.launching(x.device):
        skinny_kernel[(triton.cdiv(columns, BLOCK_N), triton.cdiv(rows, BLOCK_M), splits)](
            TensorDescriptor(x, x.shape, x.stride(), [BLOCK_M, BLOCK_K]),
            TensorDescriptor(weight, weight.shape, weight.stride(), [BLOCK_N, BLOCK_K]),
            out, rows, columns, inner, splits, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K,
            num_warps=4, num_stages=4,
        )  # fmt: skip
    return out
