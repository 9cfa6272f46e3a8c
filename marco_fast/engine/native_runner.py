"""NativeRunner: a model of the Llama family, up to its LM head, as one C++ call per step on a CPU.

transformers runs a layer as some forty operations, each a few microseconds of Python and dispatch,
and multiplies by weights as they lie in the file. Here the weights are packed once for the products
of few rows, neighbouring operations are one, and a step crosses into C++ once. Each row's bits
depend on its own path alone: not on the other rows, the number of threads, or how a prompt is cut
into pieces.
"""

from typing import Any

import torch
import transformers

from marco_fast.engine.branches import Segment
from marco_fast.engine.kv_cache import PagedKVCache
from marco_fast.engine.loading.as_built import is_as_built
from marco_fast.engine.loading.context import limit_of
from marco_fast.engine.packing import Weights, forget
from marco_fast.engine.quantized import QuantizedEmbedding, QuantizedLinear
from marco_fast.engine.runner import PREFILL_BATCH, TreeBatch, compute_by_plan
from marco_fast.ops import SampledTokens, TreeAttentionPlan, lm_head_confidence
from marco_fast.ops.backends import built
from marco_fast.ops.dtypes import DTYPE_CODES, cpp_view
from marco_fast.ops.isolation import isolated

__all__ = ["NativeRunner"]

# Model classes whose layers are what csrc/cpu/decoder/ computes; Qwen3's also norm each head.
KNOWN = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
FLOATS = (torch.float32, torch.bfloat16)  # what it decodes in


class NativeRunner:
    """The packed weights of a model, and the step over them.

    Use `NativeRunner.of`. The model's own layers lose their weights to it; its embedding, its LM
    head, its RoPE and its configuration stay.
    """

    def __init__(self, model: Any, cache: PagedKVCache) -> None:
        from marco_fast import _C

        config, base = model.config, model.model
        self.cache = cache
        head, table = model.lm_head, base.embed_tokens
        self.head = _weight(head), None if head.bias is None else head.bias.detach()
        self.num_heads: int = config.num_attention_heads
        self.rotary = base.rotary_emb
        self.context = limit_of(config).tokens
        self.dtype: torch.dtype = cache.k[0].dtype
        self.hidden_size: int = config.hidden_size
        self.embedding = _weight(table)  # kept alive: C++ has its address
        self.weights = Weights(self.dtype)
        quantized = isinstance(table, QuantizedEmbedding)
        shape = (table.num_embeddings, table.embedding_dim)
        self.native = _C.Decoder(
            dtype=DTYPE_CODES[self.dtype],
            embedding=(0, *shape, shape[1], 1) if quantized else cpp_view(self.embedding),
            quantized_embedding=self.embedding.native if quantized else _C.QuantizedPanels(),
            intermediate_size=config.intermediate_size,
            num_heads=config.num_attention_heads,
            cache=cpp_view(cache.k[0]),
            norm=self.weights.vector(base.norm.weight),
            eps=config.rms_norm_eps,
        )
        for index, layer in enumerate(base.layers):
            self._add_layer(layer, cache.k[index], cache.v[index])
        size = base.layers[0].self_attn.head_dim
        self.cos = self.sin = torch.empty(0, size, dtype=torch.float32, device="cpu")

    @classmethod
    @isolated
    def of(cls, model: Any, cache: PagedKVCache) -> "NativeRunner | None":
        """A runner for `model`, or None where C++ does not know its like: transformers runs it."""
        config = model.config
        known = [getattr(transformers, name, None) for name in KNOWN]
        if not built() or type(model) not in known or cache.k[0].dtype not in FLOATS:
            return None
        if model.device.type != "cpu" or getattr(config, "hidden_act", "") != "silu":
            return None
        if config.hidden_size % 16 or config.intermediate_size % 16 or not _is_known(model):
            return None
        return cls(model, cache)

    @isolated
    def sample(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        batch: TreeBatch,
        options: dict[str, Any],
    ) -> SampledTokens:
        """As Runner.sample; the logits are never stored."""
        hidden = self.step(token_ids, positions, batch.slots, batch.plan)
        weight, bias = self.head
        return lm_head_confidence(hidden, weight, bias=bias, **options)

    @isolated
    def write_kv(self, token_ids: list[int], positions: list[int], batch: TreeBatch) -> None:
        """As Runner.write_kv."""
        ids, at = (torch.tensor(each, device="cpu") for each in (token_ids, positions))
        self.step(ids, at, batch.slots, batch.plan, hidden=False)

    @isolated
    def compute(self, segment: Segment, slots: torch.Tensor, rows: int) -> None:
        """As Runner.compute; a row has the same bits in any batch, so batches are large."""
        compute_by_plan(self, segment, slots, PREFILL_BATCH)

    @isolated
    def step(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        plan: TreeAttentionPlan,
        *,
        hidden: bool = True,
    ) -> torch.Tensor:
        """One token of every query of the plan.

        Args:
            token_ids, positions: [Q] int64.
            slots: [Q] int64, where the token's own K and V go; -1: nowhere.
            plan: of Q queries, which read the slots as well.
            hidden: whether hidden states are wanted, or K and V alone.

        Returns:
            What the LM head multiplies, [Q, hidden] of the model's dtype; else [0, hidden].

        Raises:
            IndexError: a token, position or slot out of range; nothing was written.
            ValueError: the plan has another number of queries.
        """
        rows = len(token_ids)
        last = max(positions.tolist(), default=-1)
        if last >= self.context:
            raise IndexError(f"expected positions below {self.context}, the context, got {last}")
        self._rotate_up_to(last + 1)
        out = torch.empty(rows if hidden else 0, self.hidden_size, dtype=self.dtype, device="cpu")
        self.native.step(
            cpp_view(token_ids),
            positions=positions.data_ptr(),
            slot_mapping=slots.data_ptr(),
            cos=cpp_view(self.cos),
            sin=self.sin.data_ptr(),
            plan=plan.arrays,
            hidden=out.data_ptr() if hidden else 0,
            threads=torch.get_num_threads(),
        )
        return out

    def _rotate_up_to(self, length: int) -> None:
        """Cosines and sines of RoPE for positions below `length`, as the model computes them."""
        if length > len(self.cos):
            positions = torch.arange(min(self.context, max(256, 2 * length)), device="cpu")[None]
            with torch.inference_mode():
                cos, sin = self.rotary(_float32(), positions)
            self.cos, self.sin = cos[0].contiguous(), sin[0].contiguous()

    def _add_layer(self, layer: Any, k_cache: torch.Tensor, v_cache: torch.Tensor) -> None:
        attention, mlp, weights = layer.self_attn, layer.mlp, self.weights
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        q_norm, k_norm = (weights.vector(each.weight) if each else 0 for each in norms)
        self.native.add_layer(
            qkv=weights.side_by_side([attention.q_proj, attention.k_proj, attention.v_proj]),
            attention_out=weights.matrix(attention.o_proj),
            gate_up=weights.gated(mlp.gate_proj, mlp.up_proj),
            down=weights.matrix(mlp.down_proj),
            attention_norm=weights.vector(layer.input_layernorm.weight),
            mlp_norm=weights.vector(layer.post_attention_layernorm.weight),
            q_norm=q_norm,
            k_norm=k_norm,
            scale=attention.scaling,
            k_cache=weights.keep(k_cache),
            v_cache=weights.keep(v_cache),
        )
        for linear in _linears(layer):
            forget(linear)


def _weight(module: Any) -> Any:
    """The matrix of an embedding or an LM head."""
    quantized = isinstance(module, QuantizedEmbedding | QuantizedLinear)
    return module.weight if quantized else module.weight.detach()


def _is_known(model: Any) -> bool:
    """Whether the model is what its class makes, and RoPE turns whole heads."""
    if not is_as_built(model):
        return False
    position = torch.zeros(1, 1, dtype=torch.int64, device="cpu")
    turned = model.model.rotary_emb(_float32(), position)[0].shape[-1]
    return all(turned == layer.self_attn.head_dim for layer in model.model.layers)


def _float32() -> torch.Tensor:
    """What tells a model's RoPE the dtype and the device of the cosines that C++ reads."""
    return torch.zeros(1, dtype=torch.float32, device="cpu")


def _linears(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    return [
        attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
        mlp.gate_proj, mlp.up_proj, mlp.down_proj,
    ]  # fmt: skip
