"""A vocabulary cut into shards, each with its own records, and the result of merging them."""

import torch

import marco_fast as mf
from marco_fast import ops

SHARDS = {2: (300, 400), 3: (1, 500, 199), 8: (90, 3, 150, 64, 128, 17, 200, 48)}
DRAWS = ("temperature", "top_p", "min_p", "sample_top_k")


class Cut:
    """A weight in shards, and which logits were asked for."""

    def __init__(self, hidden, weight, sizes, bias=None, round_logits=None) -> None:
        self.hidden, self.rounded = hidden, round_logits
        self.weights = weight.split(sizes)
        self.biases = [None] * len(sizes) if bias is None else bias.split(sizes)
        self.asked: list[tuple[int, list[int]]] = []

    def records(self, backend="cpu", **options) -> list[mf.LMHeadRecords]:
        begin, records = 0, []
        vocab = sum(len(each) for each in self.weights)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            records.append(
                ops.lm_head_records(
                    self.hidden, weight, begin, vocab, bias=bias, round_logits=self.rounded,
                    backend=backend, **options,
                )
            )  # fmt: skip
            begin += len(weight)
        return records

    def logits_of(self, shard: int, rows: torch.Tensor) -> torch.Tensor:
        self.asked.append((shard, rows.tolist()))
        logits = self.hidden[rows].float() @ self.weights[shard].float().T
        if self.biases[shard] is not None:
            logits += self.biases[shard]
        return logits.to(self.rounded or torch.float32).float()

    def merged(self, keys, backend="cpu", **options) -> mf.SampledTokens:
        shared = {name: options[name] for name in (*DRAWS, "top_k", "score") if name in options}
        records = self.records(backend, **shared)
        return ops.merge_records(records, self.logits_of, **keys, **options)


def assert_same_result(got, want, most_other_tokens=0) -> None:
    """Ids exactly, scores within rounding, where the token is the same."""
    same = got.token_ids == want.token_ids
    assert (~same).sum() <= most_other_tokens
    assert torch.equal(got.topk_ids, want.topk_ids)
    assert torch.equal(got.status, want.status)
    for field in ("confidence", "token_logprobs", "lse", "topk_logprobs", "entropy"):
        mine, theirs = (getattr(each, field)[same] for each in (got, want))
        torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=2e-6)
