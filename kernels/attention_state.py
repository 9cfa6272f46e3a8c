"""The state of attention over a part of a path: how parts are joined, stored and finished.

Device code of both stages of tree attention. m is in units of log2; the state without a token is
(-inf, 0, 0), and joining it changes nothing.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

__all__ = [
    "Result",
    "State",
    "fold",
    "load_partial",
    "no_tokens",
    "store_partial",
    "store_result",
]

LN_2 = tl.constexpr(0.6931471805599453)


class State(NamedTuple):
    """The running softmax of some rows."""

    m: Any  # [rows] the largest score
    s: Any  # [rows] sum of 2^(score - m)
    acc: Any  # [rows, dim] sum of 2^(score - m) * v


class Result(NamedTuple):
    """What the two stages fill."""

    out_ptr: Any  # [Q, num_heads, head_dim]
    stride_query: Any
    stride_head: Any
    lse_ptr: Any  # [Q, num_heads] float32; not written unless lse is wanted


@triton.jit
def no_tokens(ROWS: tl.constexpr, DIM: tl.constexpr):
    """The state of rows that have seen nothing."""
    m = tl.full([ROWS], float("-inf"), tl.float32)
    return State(m, tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, DIM], tl.float32))


@triton.jit
def fold(state, then):
    """The state of two consecutive parts of a path; an empty one keeps the other's bits."""
    m = tl.maximum(state.m, then.m)
    shift = tl.where(m == float("-inf"), 0.0, m)  # two empty ones: not inf - inf
    factor, next_factor = tl.exp2(state.m - shift), tl.exp2(then.m - shift)
    empty, next_empty = state.m == float("-inf"), then.m == float("-inf")
    joined = tl.fma(state.s, factor, then.s * next_factor)
    wide = tl.broadcast_to(factor[:, None], state.acc.shape)
    sums = tl.fma(state.acc, wide, then.acc * next_factor[:, None])
    s = tl.where(next_empty, state.s, tl.where(empty, then.s, joined))
    acc = tl.where(empty[:, None], then.acc, sums)
    return State(m, s, tl.where(next_empty[:, None], state.acc, acc))


@triton.jit
def finish(state):
    """The result and its lse (natural log): a state without tokens gives 0 and -inf."""
    nonzero = tl.where(state.s == 0.0, 1.0, state.s)
    return state.acc / nonzero[:, None], (state.m + tl.log2(nonzero)) * LN_2


@triton.jit
def store_result(result, state, caller, head, valid, num_heads, head_dim, wants_lse):
    """Writes out and lse; query (the caller's index), head and valid are [rows] of the state."""
    out, lse = finish(state)
    offs_dim = tl.arange(0, out.shape[1])
    mask = valid[:, None] & (offs_dim < head_dim)[None, :]
    out_rows = result.out_ptr + caller * result.stride_query
    out_rows = out_rows + head.to(tl.int64) * result.stride_head
    out_rows = out_rows[:, None] + offs_dim[None, :]
    tl.store(out_rows, out.to(result.out_ptr.dtype.element_ty), mask=mask)
    tl.store(result.lse_ptr + caller * num_heads + head, lse, mask=valid & (wants_lse != 0))


@triton.jit
def store_partial(workspace_ptr, state, slot, valid, num_partials, num_heads, head_dim):
    """Writes acc, m and s; slot = partial * num_heads + head and valid are [rows] of the state."""
    offs_dim = tl.arange(0, state.acc.shape[1])
    mask = valid[:, None] & (offs_dim < head_dim)[None, :]
    acc_rows = workspace_ptr + slot[:, None] * head_dim + offs_dim[None, :]
    tl.store(acc_rows, state.acc, mask=mask)
    states = tl.full([state.m.shape[0]], num_partials, tl.int64) * num_heads
    m_rows = workspace_ptr + states * head_dim + slot
    tl.store(m_rows, state.m, mask=valid)
    tl.store(m_rows + states, state.s, mask=valid)


@triton.jit
def load_partial(workspace_ptr, slot, valid, num_partials, num_heads, head_dim, DIM: tl.constexpr):
    """What store_partial wrote; s is negative where it goes on with the token group before."""
    offs_dim = tl.arange(0, DIM)
    mask = valid[:, None] & (offs_dim < head_dim)[None, :]
    acc_rows = workspace_ptr + slot[:, None] * head_dim + offs_dim[None, :]
    acc = tl.load(acc_rows, mask=mask, other=0.0)
    states = tl.full([slot.shape[0]], num_partials, tl.int64) * num_heads
    m_rows = workspace_ptr + states * head_dim + slot
    m = tl.load(m_rows, mask=valid, other=float("-inf"))
    return State(m, tl.load(m_rows + states, mask=valid, other=0.0), acc)
