"""The tolerance policy: a kernel may err by 1 ulp of its output plus 1.5x plain PyTorch's error.

Every comparison is with a float64 reference on the same rounded inputs; where plain PyTorch's own
error is not at hand, the allowance is the ulp alone plus the stated absolute term.
"""

import torch

__all__ = ["assert_close", "assert_lse_close", "ulp"]


def ulp(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The spacing of `dtype` at |x|, float64; never below the smallest normal's."""
    info = torch.finfo(dtype)
    return torch.exp2(torch.floor(torch.log2(x.abs().clamp_min(info.tiny)))) * info.eps


def assert_close(
    got: torch.Tensor,
    want: torch.Tensor,
    plain: torch.Tensor | None = None,
    *,
    atol: float = 0.0,
    ulps: float = 1.0,
    name: str = "output",
) -> None:
    """`got` is within 1 ulp of its dtype + 1.5 * max |plain - want| (+ atol) of `want`.

    Args:
        got: the kernel's output.
        want: the float64 reference; must be finite.
        plain: what plain PyTorch gives in the inputs' dtype, or None.
        atol: an absolute allowance a page of the design states.
        ulps: allowed spacings of the output's dtype.
        name: for the message.
    """
    assert want.dtype == torch.float64
    assert torch.isfinite(want).all(), f"the reference of {name} is not finite"
    assert got.shape == want.shape, f"{name}: expected shape {want.shape}, got {got.shape}"
    if got.numel() == 0:
        return
    slack = 0.0
    if plain is not None:
        slack = 1.5 * (plain.double() - want).abs().max().item()
    error = (got.double() - want).abs()
    allowed = ulps * ulp(want, got.dtype) + slack + atol
    bad = ~(error <= allowed)
    if bad.any():
        worst = torch.where(bad, error - allowed, -torch.inf).flatten().argmax().item()
        raise AssertionError(
            f"{name}: {int(bad.sum())} of {bad.numel()} wrong; at {worst}: expected "
            f"{want.flatten()[worst].item()!r}, got {got.flatten()[worst].item()!r}, "
            f"allowed {allowed.flatten()[worst].item():.3g}"
        )


def assert_lse_close(got: torch.Tensor, want: torch.Tensor) -> None:
    """|got - want| <= 2e-6 * (1 + |want|), infinities exact."""
    infinite = torch.isinf(want)
    assert torch.equal(torch.isinf(got), infinite)
    assert torch.equal(got[infinite].double(), want[infinite].double())
    got, want = got[~infinite].double(), want[~infinite].double()
    bad = (got - want).abs() > 2e-6 * (1 + want.abs())
    assert not got.isnan().any(), f"lse: expected {want}, got {got}"
    assert not bad.any(), f"lse: expected {want}, got {got}"
