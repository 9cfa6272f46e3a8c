"""Which token a draw must give: the filters and the inverse CDF in float64, by brute force."""

import math

import numpy as np
import torch

from marco_fast.ops.confidence.options import Sampling, sampling_arguments
from marco_fast.ops.reference.philox import philox_uniform

__all__ = [
    "CDF_ATOL",
    "OPTIONS",
    "check_draws",
    "kept_masses",
    "keyed",
    "options_of",
    "sampling_of",
]

# A draw may differ from the float64 CDF only where u lies this close to a boundary of it. The
# masses are float32: 2 ulp each, and up to 20 * 2^-24 where a temperature divides the exponent.
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
    "min_p above top_p": (1.0, 0.99, 1.0, 0),
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


def sampling_of(name: str, keys: dict[str, torch.Tensor], paths=(None, None, None)) -> Sampling:
    """What a launcher takes."""
    seeds, positions = keys["seeds"], keys["positions"]
    options = options_of(name).values()
    return sampling_arguments(seeds, *options, seeds, positions, "raw", "top_k", *paths)


def kept_masses(z: np.ndarray, temperature, top_p, min_p, sample_top_k) -> np.ndarray:
    """[V] float64: the mass of each token that the filters keep, else 0; z [V] without NaN."""
    ranked = np.lexsort((np.arange(len(z)), -z))
    with np.errstate(invalid="ignore"):
        mass = np.exp(np.where(z == z.max(), 0.0, (z - z.max()) / temperature))
    reached = mass[ranked].cumsum() >= top_p * mass.sum()
    kept = len(z)
    if top_p < 1 and reached.any():
        kept = int(reached.argmax()) + 1
    if sample_top_k > 0:
        kept = min(kept, int(sample_top_k))
    kept = max(1, min(kept, int((mass >= min_p).sum())))
    mass[ranked[kept:]] = 0.0
    return mass


def distance(mass: np.ndarray, token: int, u: float) -> float:
    """How far u lies outside the interval of [0, 1) that draws `token`; inf where it has none."""
    if not 0 <= token < len(mass) or mass[token] == 0:
        return math.inf
    below = mass[:token].sum() / mass.sum()
    return max(below - u, u - below - mass[token] / mass.sum(), 0.0)


def check_draws(logits: torch.Tensor, token_ids: torch.Tensor, keys, options) -> None:
    """Every token is one that float64 draws for a u, and a top_p, within CDF_ATOL of its own."""
    rows = logits.double().masked_fill(logits.isnan(), -math.inf).numpy()
    uniforms = philox_uniform(keys["seeds"], keys["positions"]).tolist()
    values = dict(zip(options, map(float, np.float32([*options.values()])), strict=True))
    for z, token, u in zip(rows, token_ids.tolist(), uniforms, strict=True):
        if z.max() == -math.inf:
            assert token == -1
            continue
        if values["temperature"] < 1e-5:
            assert token == z.argmax()
            continue
        near = []
        for shift in (0.0, -CDF_ATOL, CDF_ATOL):
            shifted = {**values, "top_p": values["top_p"] + shift if values["top_p"] < 1 else 1.0}
            near.append(distance(kept_masses(z, **shifted), token, u))
            if near[-1] <= CDF_ATOL:
                break
        assert min(near) <= CDF_ATOL, f"token {token} at u = {u}: off by {near}"
