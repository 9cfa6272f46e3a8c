"""The nano models: their sizes, and a forward pass of Qwen2 and Llama for training on a CPU.

Weights are float32; matrix products are computed in a type of choice. The parameters have the names
of transformers' Qwen2ForCausalLM and LlamaForCausalLM, so that state dicts can be exchanged; a test
compares the two forward passes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

Config = Qwen2Config | LlamaConfig

_COMMON: dict[str, Any] = {
    "vocab_size": 1664,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}


def nano_marco() -> Qwen2Config:
    """Qwen2: 7 query heads on 1 KV head of 32 dimensions, tied embeddings."""
    return Qwen2Config(
        **_COMMON,
        hidden_size=224,
        intermediate_size=576,
        num_hidden_layers=6,
        num_attention_heads=7,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        architectures=["Qwen2ForCausalLM"],
    )


def nano_llama() -> LlamaConfig:
    """Llama: groups of 3 on 2 KV heads of 32 dimensions, tied embeddings, RoPE scaled as llama3."""
    return LlamaConfig(
        **_COMMON,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
        architectures=["LlamaForCausalLM"],
    )


MODELS: dict[str, Callable[[], Config]] = {"nano-marco": nano_marco, "nano-llama": nano_llama}


def frequencies(config: Config) -> Tensor:
    """[head_dim / 2] float32: the angles per position of RoPE, as transformers computes them."""
    return LlamaRotaryEmbedding(config).inv_freq  # type: ignore[arg-type]


class SharedHeadAttention(torch.autograd.Function):
    """softmax(q k^T) v under a causal mask, for query heads that share one KV head; q is scaled.

    A model with several KV heads passes each of them, with its group of query heads, as a sample of
    its own. The query heads are stacked along the queries, so that each product is one matrix
    product per sample. The probabilities are kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, heads, T, D], k and v [B, T, D], one dtype -> [B, heads, T, D]."""
        batch, heads, length, size = q.shape
        scores = torch.bmm(q.reshape(batch, heads * length, size), k.transpose(1, 2))
        ahead = torch.full((length, length), -torch.inf, dtype=q.dtype).triu(1)
        scores.view(batch, heads, length, length).add_(ahead)
        p = scores.softmax(-1)
        ctx.save_for_backward(q, k, v, p)
        return torch.bmm(p, v).view(q.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k and v."""
        q, k, v, p = ctx.saved_tensors
        grad = grad.reshape(p.shape[0], p.shape[1], q.shape[3])
        grad_v = torch.bmm(p.transpose(1, 2), grad)
        grad_p = torch.bmm(grad, v.transpose(1, 2))
        grad_s = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
        grad_k = torch.bmm(grad_s.transpose(1, 2), q.reshape(grad.shape))
        return torch.bmm(grad_s, k).view(q.shape), grad_k, grad_v


class Attention(nn.Module):
    """Causal attention in which groups of query heads share a KV head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden, self.head_dim = config.hidden_size, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        bias = config.model_type == "qwen2"
        self.q_proj = nn.Linear(hidden, self.heads * self.head_dim, bias)
        self.k_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias)
        self.v_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, T, hidden] of the products' type -> the same."""
        batch, length, _ = x.shape
        heads, kv_heads = self.heads, self.kv_heads
        three = (self.q_proj, self.k_proj, self.v_proj)
        weight = torch.cat([each.weight for each in three]).to(x.dtype)
        bias = None
        if self.q_proj.bias is not None:
            bias = torch.cat([each.bias for each in three]).to(x.dtype)
        qkv = functional.linear(x, weight, bias)
        qkv = qkv.view(batch, length, -1, self.head_dim).transpose(1, 2).float()
        turned, v = qkv.split((heads + kv_heads, kv_heads), 1)
        turned = turned * cos + torch.cat(turned.chunk(2, -1)[::-1], -1) * sin
        q, k = turned.split((heads, kv_heads), 1)
        q = (q * self.head_dim**-0.5).to(x.dtype)
        q = q.reshape(batch * kv_heads, heads // kv_heads, length, self.head_dim)
        k, v = (each.to(x.dtype).reshape(-1, length, self.head_dim) for each in (k, v))
        out = SharedHeadAttention.apply(q, k, v).view(batch, heads, length, -1)
        out = out.transpose(1, 2).reshape(batch, length, -1)
        return functional.linear(out, self.o_proj.weight.to(x.dtype))


class MLP(nn.Module):
    """The SwiGLU feed-forward layer."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, hidden] of the products' type -> the same."""
        gate = functional.linear(x, self.gate_proj.weight.to(x.dtype))
        up = functional.linear(x, self.up_proj.weight.to(x.dtype))
        return functional.linear(functional.silu(gate) * up, self.down_proj.weight.to(x.dtype))


class Layer(nn.Module):
    """Attention and MLP, each on normed input and added to the residual stream."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)
        self.dtype = dtype
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, T, hidden] float32 -> the same."""
        x = x + self.self_attn(self.input_layernorm(x).to(self.dtype), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x).to(self.dtype))


class Body(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, dtype) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """ids [B, T] -> [B, T, hidden] float32."""
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class Network(nn.Module):
    """Qwen2ForCausalLM or LlamaForCausalLM with tied embeddings.

    Args:
        config: its sizes.
        frequencies: [head_dim / 2] float32, the angles per position of RoPE.
        dtype: of the matrix products.
    """

    rotary: Tensor

    def __init__(
        self, config: Config, frequencies: Tensor, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.model, self.dtype = Body(config, dtype), dtype
        rotary = _rotary(frequencies, config.max_position_embeddings)
        self.register_buffer("rotary", rotary, persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                scale = (2 * config.num_hidden_layers) ** -0.5
                short = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.05 * (scale if short else 1.0))
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> hidden states [B, T, hidden] float32, after the last norm."""
        cos, sin = self.rotary[:, : ids.shape[1]]
        return self.model(ids, cos, sin)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, hidden] -> [N, vocab_size] float32."""
        weight = self.model.embed_tokens.weight
        return functional.linear(hidden.to(self.dtype), weight.to(self.dtype)).float()


def _rotary(frequencies: Tensor, length: int) -> Tensor:
    """[2, length, head_dim]: cos, and sin, negated in the first half of the dimensions."""
    angle = torch.outer(torch.arange(length).float(), frequencies)
    sin = angle.sin()
    return torch.stack((angle.cos().repeat(1, 2), torch.cat((-sin, sin), -1)))
