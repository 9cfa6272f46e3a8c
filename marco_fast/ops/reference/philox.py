"""Philox4x32-10 in PyTorch: random numbers as a pure function of (seed, position, purpose).

The key is the seed's two 32-bit halves, low first; the counter is (position low, position high,
purpose, 0). The kernels give the same bits.
"""

import torch

__all__ = ["PURPOSE_TOKEN", "philox4x32", "philox_uniform"]

PURPOSE_TOKEN = 0
_MASK = 0xFFFFFFFF


def philox4x32(counter: list[torch.Tensor], key: list[torch.Tensor]) -> list[torch.Tensor]:
    """The four 32-bit words of one block.

    Args:
        counter: four int64 tensors of one shape, each in [0, 2^32).
        key: two such tensors.
    """
    x0, x1, x2, x3 = counter
    key0, key1 = key
    for _ in range(10):
        # int64 products wrap modulo 2^64, which keeps all 64 bits of an unsigned product.
        product0, product1 = x0 * 0xD2511F53, x2 * 0xCD9E8D57
        x0 = ((product1 >> 32) & _MASK) ^ x1 ^ key0
        x1 = product1 & _MASK
        x2 = ((product0 >> 32) & _MASK) ^ x3 ^ key1
        x3 = product0 & _MASK
        key0 = (key0 + 0x9E3779B9) & _MASK
        key1 = (key1 + 0xBB67AE85) & _MASK
    return [x0, x1, x2, x3]


def philox_uniform(
    seeds: torch.Tensor, positions: torch.Tensor, purpose: int = PURPOSE_TOKEN
) -> torch.Tensor:
    """float64 in [0, 1): the upper 53 bits of a block's first two words (low word first) * 2^-53.

    Args:
        seeds, positions: int64 tensors of one shape, any value.
        purpose: what the number is for; in [0, 2^32).
    """
    counter = [
        positions & _MASK,
        (positions >> 32) & _MASK,
        torch.full_like(positions, purpose),
        torch.zeros_like(positions),
    ]
    low, high, _, _ = philox4x32(counter, [seeds & _MASK, (seeds >> 32) & _MASK])
    return ((high << 21) | (low >> 11)).double() * 2.0**-53
