"""The tolerance policy: a kernel may err by 1 ulp of its output plus 1.5x plain PyTorch's error.

Every comparison is with a float64 reference on the same rounded inputs; where plain PyTorch's own
error is not at hand, the allowance is the ulp alone plus the stated absolute term.
"""

import torch

__all__ = ["assert_close", "assert_lse_close", "assert_scores", "entropy_of", "ulp"]

# Each exponential is within 2 ulp and the sums run in float32 lanes: log(sum) is within 2.5e-7.
LOGPROB_ATOL = 2.5e-7


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


def assert_logprobs(got: torch.Tensor, want: torch.Tensor, plain: torch.Tensor, name: str) -> None:
    """Within the ulp, plain PyTorch's error and LOGPROB_ATOL; the same tokens masked."""
    assert not got.isnan().any(), f"{name} has NaN"
    assert torch.equal(got == -torch.inf, want == -torch.inf), f"{name}: other tokens are masked"
    finite = want > -torch.inf
    assert_close(got[finite], want[finite], plain[finite], atol=LOGPROB_ATOL, name=name)


def assert_scores(got, want, plain, backend: str = "cpu") -> None:
    """Fields of TopKConfidence. The C++ confidence is computed in float64: 1 ulp, nothing more."""
    assert torch.equal(got.status, want.status)
    assert torch.equal(got.topk_ids, want.topk_ids)
    slack = plain.confidence if backend == "torch" else None
    assert_close(got.confidence, want.confidence, slack, name="confidence")
    assert (got.confidence >= 0).all()
    assert (got.confidence <= 1).all()
    assert_lse_close(got.lse, want.lse)
    assert_logprobs(got.token_logprobs, want.token_logprobs, plain.token_logprobs, "token_logprobs")
    assert_logprobs(got.topk_logprobs, want.topk_logprobs, plain.topk_logprobs, "topk_logprobs")


def entropy_of(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """[B] float64, nats, of softmax(logits / temperature); +inf entries share the probability."""
    z = logits.double().masked_fill(logits.isnan(), -torch.inf)
    infinite = (z == torch.inf).any(-1, keepdim=True)
    z = torch.where(infinite, torch.where(z == torch.inf, 0.0, -torch.inf), z / temperature)
    p = z.softmax(-1).nan_to_num(0.0)
    return torch.special.entr(p).sum(-1)
