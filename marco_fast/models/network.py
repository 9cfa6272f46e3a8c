"""The Qwen2 forward pass for training on a CPU: bfloat16 products, float32 stream and weights.

The parameters carry the names of transformers' Qwen2ForCausalLM, so that a state dict moves between
the two as it is; tests hold the two forward passes together.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class SharedHeadAttention(torch.autograd.Function):
    """softmax(q k^T) v under a causal mask, all query heads on one KV head; q is already scaled.

    The heads are stacked along the queries, so that each product is one matrix product a sample;
    the probabilities are kept for the backward pass.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, heads, T, D], k and v [B, T, D], one dtype -> [B, heads, T, D]."""
        batch, heads, length, size = q.shape
        scores = torch.bmm(q.reshape(batch, heads * length, size), k.transpose(1, 2))
        ahead = torch.full((length, length), -torch.inf, dtype=q.dtype).triu(1)
        scores.view(batch, heads, length, length).add_(ahead)
        p = scores.softmax(-1)
        ctx.save_for_backward(q, k, v, p)
        return torch.bmm(p, v).view(q.shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k and v."""
        q, k, v, p = ctx.saved_tensors
        grad = grad.reshape(p.shape[0], p.shape[1], q.shape[3])
        grad_v = torch.bmm(p.transpose(1, 2), grad)
        grad_p = torch.bmm(grad, v.transpose(1, 2))
        grad_s = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
        grad_k = torch.bmm(grad_s.transpose(1, 2), q.reshape(grad.shape))
        return torch.bmm(grad_s, k).view(q.shape), grad_k, grad_v


class Attention(nn.Module):
    """Causal attention with query heads that share one KV head."""

    def __init__(self, hidden: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.q_proj = nn.Linear(hidden, heads * head_dim)
        self.k_proj = nn.Linear(hidden, head_dim)
        self.v_proj = nn.Linear(hidden, head_dim)
        self.o_proj = nn.Linear(heads * head_dim, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, T, hidden] bfloat16 -> the same."""
        batch, length, _ = x.shape
        weight = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        bias = torch.cat((self.q_proj.bias, self.k_proj.bias, self.v_proj.bias))
        qkv = functional.linear(x, weight.to(x.dtype), bias.to(x.dtype))
        qkv = qkv.view(batch, length, -1, self.head_dim).transpose(1, 2).float()
        turned, v = qkv.split((self.heads + 1, 1), 1)
        turned = turned * cos + torch.cat(turned.chunk(2, -1)[::-1], -1) * sin
        q, k = turned.split((self.heads, 1), 1)
        q = (q * self.head_dim**-0.5).to(x.dtype)
        out = SharedHeadAttention.apply(q, k[:, 0].to(x.dtype), v[:, 0].to(x.dtype))
        out = out.transpose(1, 2).reshape(batch, length, -1)
        return functional.linear(out, self.o_proj.weight.to(x.dtype))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, hidden] bfloat16 -> the same."""
        gate = functional.linear(x, self.gate_proj.weight.to(x.dtype))
        up = functional.linear(x, self.up_proj.weight.to(x.dtype))
        return functional.linear(functional.silu(gate) * up, self.down_proj.weight.to(x.dtype))


class Layer(nn.Module):
    """Attention and MLP, each after a norm and added to the stream."""

    def __init__(self, config) -> None:
        super().__init__()
        self.self_attn = Attention(config.hidden_size, config.num_attention_heads, config.head_dim)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, T, hidden] float32 -> the same."""
        x = x + self.self_attn(self.input_layernorm(x).bfloat16(), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x).bfloat16())


class Body(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """ids [B, T] -> [B, T, hidden] float32."""
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class Network(nn.Module):
    """Qwen2ForCausalLM with one KV head and tied embeddings; `config` is its Qwen2Config."""

    rotary: Tensor

    def __init__(self, config) -> None:
        super().__init__()
        self.model = Body(config)
        self.register_buffer("rotary", _rotary(config), persistent=False)
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
        """hidden [N, hidden] -> [N, vocabulary] float32."""
        weight = self.model.embed_tokens.weight
        return functional.linear(hidden.bfloat16(), weight.bfloat16()).float()


def _rotary(config) -> Tensor:
    """[2, T, head_dim]: cos, and sin with the sign of the half-turned first half."""
    half = config.head_dim // 2
    theta = config.rope_parameters["rope_theta"]
    angle = torch.outer(
        torch.arange(config.max_position_embeddings).float(),
        theta ** (-torch.arange(half).float() / half),
    )
    sin = angle.sin()
    return torch.stack((angle.cos().repeat(1, 2), torch.cat((-sin, sin), -1)))
