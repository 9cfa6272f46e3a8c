"""The forward pass of Qwen2 and Llama for training on a CPU: float32 weights, products as asked.

The parameters carry the names of transformers' Qwen2ForCausalLM and LlamaForCausalLM, so that a
state dict moves between the two as it is; tests hold the two forward passes together.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class SharedHeadAttention(torch.autograd.Function):
    """softmax(q k^T) v under a causal mask, all query heads on one KV head; q is already scaled.

    Several KV heads are several entries of the batch, each with its own group of query heads.

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
    """Causal attention with groups of query heads that share a KV head."""

    def __init__(self, config) -> None:
        super().__init__()
        hidden, self.head_dim = config.hidden_size, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        bias = config.model_type == "qwen2"
        self.q_proj = nn.Linear(hidden, self.heads * self.head_dim, bias)
        self.k_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias)
        self.v_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, T, hidden], of the products' type -> the same."""
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
    """SwiGLU."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, hidden], of the products' type -> the same."""
        gate = functional.linear(x, self.gate_proj.weight.to(x.dtype))
        up = functional.linear(x, self.up_proj.weight.to(x.dtype))
        return functional.linear(functional.silu(gate) * up, self.down_proj.weight.to(x.dtype))


class Layer(nn.Module):
    """Attention and MLP, each after a norm and added to the stream."""

    def __init__(self, config, dtype: torch.dtype) -> None:
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

    def __init__(self, config, dtype: torch.dtype) -> None:
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
        config: its Qwen2Config or LlamaConfig.
        frequencies: [head_dim / 2] float32, the angles of RoPE a position.
        dtype: of the products.
    """

    rotary: Tensor

    def __init__(self, config, frequencies: Tensor, dtype: torch.dtype = torch.float32) -> None:
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
        """hidden [N, hidden] -> [N, vocabulary] float32."""
        weight = self.model.embed_tokens.weight
        return functional.linear(hidden.to(self.dtype), weight.to(self.dtype)).float()


def _rotary(frequencies: Tensor, length: int) -> Tensor:
    """[2, length, head_dim]: cos, and sin with the sign of the half-turned first half."""
    angle = torch.outer(torch.arange(length).float(), frequencies)
    sin = angle.sin()
    return torch.stack((angle.cos().repeat(1, 2), torch.cat((-sin, sin), -1)))
