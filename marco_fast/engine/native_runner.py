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

from marco_fast.engine import huge_pages
from marco_fast.engine.branches import Segment
from marco_fast.engine.kv_cache import PagedKVCache
from marco_fast.engine.loading.as_built import is_as_built
from marco_fast.engine.loading.context import limit_of
from marco_fast.engine.runner import PREFILL_BATCH, TreeBatch, compute_by_plan
from marco_fast.ops import SampledTokens, TreeAttentionPlan, lm_head_confidence
from marco_fast.ops.backends import built
from marco_fast.ops.dtypes import DTYPE_CODES, cpp_view
from marco_fast.ops.isolation import isolated

__all__ = ["PANEL", "NativeRunner", "pack_bias", "pack_gated", "pack_linear"]

# Model classes whose layers are what csrc/cpu/decoder/ computes; Qwen3's also norm each head.
KNOWN = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
PANEL = 32  # outputs that lie side by side in packed weights (csrc/cpu/decoder/decoder_kernels.h)
FLOATS = (torch.float32, torch.bfloat16)  # what it decodes in


def pack_linear(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] as panels of 32 outputs, the last one filled up with zeros.

    Returns:
        [panels, in, 32] float32, or [panels, in / 2, 32, 2] bfloat16.
    """
    outputs, inputs = weight.shape
    if outputs % PANEL:
        weight = torch.nn.functional.pad(weight, (0, 0, 0, -outputs % PANEL))
    if weight.dtype == torch.bfloat16:
        return weight.view(-1, PANEL, inputs // 2, 2).transpose(1, 2).contiguous()
    return weight.view(-1, PANEL, inputs).transpose(1, 2).contiguous()


def pack_gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Panels of 16 gates and their 16 values, from two [intermediate, in]."""
    pieces = [each.view(-1, PANEL // 2, each.shape[1]) for each in (gate, up)]
    return pack_linear(torch.cat(pieces, dim=1).flatten(0, 1))


class NativeRunner:
    """The packed weights of a model, and the step over them.

    Use `NativeRunner.of`. The model's own layers lose their weights to it; its embedding, its LM
    head, its RoPE and its configuration stay.
    """

    def __init__(self, model: Any, cache: PagedKVCache) -> None:
        from marco_fast import _C

        config, base = model.config, model.model
        self.cache = cache
        head = model.lm_head
        self.head = head.weight.detach(), None if head.bias is None else head.bias.detach()
        self.num_heads: int = config.num_attention_heads
        self.rotary = base.rotary_emb
        self.context = limit_of(config).tokens
        self.embedding = base.embed_tokens.weight.detach()
        self.tensors: list[torch.Tensor] = []  # kept alive: C++ has their addresses
        attention = base.layers[0].self_attn
        self._keep(self.embedding)
        self.native = _C.Decoder(
            dtype=DTYPE_CODES[cache.k[0].dtype],
            embedding=cpp_view(self.embedding),
            intermediate_size=config.intermediate_size,
            num_heads=config.num_attention_heads,
            cache=cpp_view(cache.k[0]),
            norm=self._vector(base.norm.weight),
            eps=config.rms_norm_eps,
        )
        for index, layer in enumerate(base.layers):
            self._add_layer(layer, cache.k[index], cache.v[index])
        self.cos = self.sin = torch.empty(0, attention.head_dim, dtype=torch.float32, device="cpu")

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
        size = self.embedding.shape[1]
        out = torch.empty(rows if hidden else 0, size, dtype=self.embedding.dtype, device="cpu")
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
        attention, mlp = layer.self_attn, layer.mlp
        inputs = (attention.q_proj, attention.k_proj, attention.v_proj)
        biases = [each.bias for each in inputs]
        qkv = self._matrix(
            torch.cat([each.weight for each in inputs]),
            None if biases[0] is None else torch.cat(biases),
        )
        gate, up = mlp.gate_proj, mlp.up_proj
        both = None if gate.bias is None else pack_bias(gate.bias, up.bias)
        panels = self._panels(pack_gated(gate.weight.detach(), up.weight.detach()))
        q_norm, k_norm = (self._vector(n.weight) if n else 0 for n in _head_norms(attention))
        self.native.add_layer(
            qkv=qkv,
            attention_out=self._matrix(attention.o_proj.weight, attention.o_proj.bias),
            gate_up=_linear(panels, self._bias(both), gate.in_features, 2 * gate.out_features),
            down=self._matrix(mlp.down_proj.weight, mlp.down_proj.bias),
            attention_norm=self._vector(layer.input_layernorm.weight),
            mlp_norm=self._vector(layer.post_attention_layernorm.weight),
            q_norm=q_norm,
            k_norm=k_norm,
            scale=attention.scaling,
            k_cache=self._keep(k_cache),
            v_cache=self._keep(v_cache),
        )
        for linear in _linears(layer):
            _forget(linear)

    def _keep(self, tensor: torch.Tensor) -> int:
        self.tensors.append(tensor)
        return tensor.data_ptr()

    def _panels(self, packed: torch.Tensor) -> int:
        return self._keep(huge_pages.empty(packed.shape, packed.dtype, packed.device).copy_(packed))

    def _vector(self, weight: torch.Tensor) -> int:
        return self._keep(weight.detach().float().contiguous())

    def _bias(self, bias: torch.Tensor | None) -> int:
        if bias is None:
            return 0
        return self._vector(torch.nn.functional.pad(bias.detach(), (0, -len(bias) % PANEL)))

    def _matrix(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        """The packed weights and the bias as C++ knows them."""
        outputs, inputs = weight.shape
        panels = self._panels(pack_linear(weight.detach()))
        return _linear(panels, self._bias(bias), inputs, outputs)


def pack_bias(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The bias of `pack_gated`'s outputs, in their order."""
    return torch.cat([gate.view(-1, PANEL // 2), up.view(-1, PANEL // 2)], dim=1).flatten()


def _linear(panels: int, bias: int, inputs: int, outputs: int) -> Any:
    from marco_fast import _C

    return _C.PackedLinear(panels=panels, bias=bias, inputs=inputs, outputs=outputs)


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


def _head_norms(attention: Any) -> tuple[Any, Any]:
    return getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)


def _forget(linear: torch.nn.Linear) -> None:
    """Gives a layer's weights up: they are packed elsewhere."""
    nothing = torch.empty(0, dtype=linear.weight.dtype, device="cpu")
    linear.weight = torch.nn.Parameter(nothing, requires_grad=False)
