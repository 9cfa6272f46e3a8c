"""Confidence and sampling written by hand in PyTorch: the peers on a CPU and on a GPU."""

import torch

__all__ = ["sample", "scores", "scores_topk_first"]

TOP_K = 5
Scores = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def scores(logits: torch.Tensor, token_ids: torch.Tensor) -> Scores:
    """log_softmax, top-k, gather: every logprob is stored, in float32.

    Args:
        logits: [B, V].
        token_ids: [B] int64.

    Returns:
        confidence [B], logprobs of the tokens [B], the TOP_K largest logprobs and their ids.
    """
    logprobs = torch.log_softmax(logits, -1, dtype=torch.float32)
    values, ids = logprobs.topk(TOP_K)
    token = logprobs.gather(1, token_ids[:, None])[:, 0]
    return token.exp() / values.exp().sum(-1), token, values, ids


def scores_topk_first(logits: torch.Tensor, token_ids: torch.Tensor) -> Scores:
    """The same from top-k of the logits and one logsumexp: no [B, V] logprobs are stored."""
    values, ids = logits.topk(TOP_K)
    lse = logits.float().logsumexp(-1)
    token = logits.gather(1, token_ids[:, None])[:, 0].float() - lse
    values = values.float() - lse[:, None]
    return token.exp() / values.exp().sum(-1), token, values, ids


def sample(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """[B] tokens: softmax, top-p by a sort where it is on, multinomial."""
    probs = (logits.float() / temperature).softmax(-1)
    if top_p == 1:
        return probs.multinomial(1)[:, 0]
    ranked, ids = probs.sort(-1, descending=True)
    ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0.0)
    return ids.gather(1, ranked.multinomial(1))[:, 0]
