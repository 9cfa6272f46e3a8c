"""Philox4x32-10 on the device: the numbers of marco_fast.ops.reference.philox, bit for bit."""

import triton
import triton.language as tl

__all__ = ["philox_uniform"]


@triton.jit
def philox_uniform(seed, position, purpose):
    """float64 in [0, 1) from int64 scalars: the upper 53 bits of a block's first two words.

    Key: the seed's halves, low first. Counter: (position low, position high, purpose, 0). Words are
    kept in int64: a product of two 32-bit words wraps modulo 2^64, which keeps all of its bits.
    """
    word = 0xFFFFFFFF
    key0 = seed & word
    key1 = (seed >> 32) & word
    x0 = position & word
    x1 = (position >> 32) & word
    x2 = (seed & 0) + purpose
    x3 = seed & 0
    for _ in tl.static_range(10):
        product0 = x0 * 0xD2511F53
        product1 = x2 * 0xCD9E8D57
        x0 = ((product1 >> 32) & word) ^ x1 ^ key0
        x1 = product1 & word
        x2 = ((product0 >> 32) & word) ^ x3 ^ key1
        x3 = product0 & word
        key0 = (key0 + 0x9E3779B9) & word
        key1 = (key1 + 0xBB67AE85) & word
    bits = (x1 << 21) | (x0 >> 11)
    return bits.to(tl.float64) * 1.1102230246251565e-16  # 2^-53
