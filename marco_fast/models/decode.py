"""Greedy and sampled replies of a nano model in large batches, for its evaluation.

One small loop over plain tensors: every row has its own position, rows that are done leave the
batch, and the samples of a question share the work on its prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from .network import Network


@dataclass(frozen=True)
class Reply:
    """A decoded reply; confidence is the mean of p(token) / sum of the five largest p."""

    text: str
    confidence: float
    tokens: int


class Decoder:
    """Decodes with float32 arithmetic.

    Args:
        network: the model; its weights are read, not changed.
        context: tokens a row can hold, prompt included.
    """

    def __init__(self, network: Network, context: int = 1024) -> None:
        self.network = network.float()
        self.context = context
        self.head_dim = network.rotary.shape[-1]
        self.heads = network.model.embed_tokens.embedding_dim // self.head_dim
        self.layers = len(network.model.layers)

    def new_cache(self, rows: int) -> Tensor:
        """[layers, 2, rows, context, head_dim] float32: keys and values."""
        return torch.zeros(self.layers, 2, rows, self.context, self.head_dim)

    def step(self, ids: Tensor, positions: Tensor, cache: Tensor, length: int) -> Tensor:
        """Logits [B, V] after token ids [B] at positions [B], all below length; fills the cache."""
        body = self.network.model
        rows = torch.arange(len(ids))
        cos, sin = (part[positions, None] for part in self.network.rotary)
        hidden_keys = torch.arange(length) > positions[:, None, None]
        x = body.embed_tokens(ids)
        for index, layer in enumerate(body.layers):
            attention, y = layer.self_attn, layer.input_layernorm(x)
            q = attention.q_proj(y).view(len(ids), self.heads, self.head_dim)
            turned = torch.cat((q, attention.k_proj(y)[:, None]), 1)
            turned = turned * cos + torch.cat(turned.chunk(2, -1)[::-1], -1) * sin
            cache[index, 0, rows, positions] = turned[:, -1]
            cache[index, 1, rows, positions] = attention.v_proj(y)
            keys, values = cache[index, :, : len(ids), :length]
            scores = turned[:, :-1] @ keys.transpose(1, 2) * self.head_dim**-0.5
            out = scores.masked_fill(hidden_keys, -torch.inf).softmax(-1) @ values
            x = x + attention.o_proj(out.flatten(1))
            y, mlp = layer.post_attention_layernorm(x), layer.mlp
            x = x + mlp.down_proj(functional.silu(mlp.gate_proj(y)) * mlp.up_proj(y))
        return functional.linear(body.norm(x), body.embed_tokens.weight)


def choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """Token ids [B]: the largest at temperature 0, else one of the shortest prefix of top_p."""
    if temperature == 0:
        return logits.argmax(-1)
    p, order = (logits / temperature).softmax(-1).topk(64)
    p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)
    return order.gather(1, torch.multinomial(p, 1, generator=generator))[:, 0]


@torch.inference_mode()
def replies(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    samples: int = 1,
    temperature: float = 0.0,
    top_p: float = 0.95,
    max_tokens: int = 768,
    seed: int = 0,
) -> list[list[Reply]]:
    """`samples` replies to every prompt; one call is one batch of len(prompts) * samples rows."""
    encoded = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    lengths = torch.tensor([len(ids) for ids in encoded])
    padded = torch.zeros(len(encoded), int(lengths.max()), dtype=torch.long)
    for row, ids in enumerate(encoded):
        padded[row, : len(ids)] = torch.tensor(ids)
    cache = decoder.new_cache(len(encoded))
    logits = torch.zeros(len(encoded), decoder.network.model.embed_tokens.num_embeddings)
    for column in range(padded.shape[1]):
        live = torch.full((len(encoded),), column)
        out = decoder.step(padded[:, column], live, cache, column + 1)
        logits = torch.where((lengths == column + 1)[:, None], out, logits)
    repeat = torch.arange(len(encoded)).repeat_interleave(samples)
    return _decode(
        decoder, tokenizer, cache[:, :, repeat], logits[repeat], lengths[repeat],
        samples=samples, temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed,
    )  # fmt: skip


def _decode(
    decoder: Decoder, tokenizer: Tokenizer, cache: Tensor, logits: Tensor, positions: Tensor,
    *, samples: int, temperature: float, top_p: float, max_tokens: int, seed: int,
) -> list[list[Reply]]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    end = tokenizer.token_to_id("<|im_end|>")
    rows = torch.arange(len(logits))
    tokens: list[list[int]] = [[] for _ in rows]
    confidence = torch.zeros(len(rows))
    done = torch.zeros(len(rows), dtype=torch.bool)  # rows that wait to be dropped
    for _ in range(max_tokens):
        chosen = choose(logits, temperature, top_p, generator)
        p = logits.softmax(-1)
        share = p.gather(1, chosen[:, None])[:, 0] / p.topk(5).values.sum(-1)
        confidence[rows] += share.masked_fill(done, 0.0)
        for row, token, over in zip(rows.tolist(), chosen.tolist(), done.tolist(), strict=True):
            if not over:
                tokens[row].append(token)
        done |= (chosen == end) | (positions + 1 >= decoder.context)
        if done.all():
            break
        if done.float().mean() > 0.15:
            keep = ~done
            chosen, positions, rows, done = chosen[keep], positions[keep], rows[keep], done[keep]
            used = int(positions.max()) + 1
            kept = decoder.new_cache(len(rows))
            kept[..., :used, :] = cache[:, :, keep, :used]
            cache = kept
        positions = positions.clamp(max=decoder.context - 1)
        logits = decoder.step(chosen, positions, cache, int(positions.max()) + 1)
        positions = positions + 1
    made = [
        Reply(tokenizer.decode(ids), float(confidence[row]) / len(ids), len(ids))
        for row, ids in enumerate(tokens)
    ]
    return [made[i : i + samples] for i in range(0, len(made), samples)]
