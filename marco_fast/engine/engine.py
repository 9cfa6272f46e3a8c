"""Engine: a Hugging Face causal language model as it is, over a paged tree KV cache."""

import json
import os
import threading
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import transformers
from jinja2 import TemplateError
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from marco_fast.engine.kv_cache import PagedKVCache
from marco_fast.engine.native_runner import Decoder
from marco_fast.engine.token_bytes import token_bytes
from marco_fast.engine.transformers_runner import ATTENTION_NAME, PromptBatch, TreeBatch
from marco_fast.errors import ModelError
from marco_fast.ops import SampledTokens, lm_head_confidence, sample_confidence

__all__ = ["BUNDLED", "PREFILL_CHUNK", "Engine"]

BUNDLED = ("nano-marco", "nano-llama")
PREFILL_CHUNK = 512  # prompt tokens of one forward pass: bounds the activations' memory
MEMORY_SHARE = 0.25  # of the machine's memory, for the KV cache when kv_tokens is not given


class Engine:
    """Decodes many branches of many trees with one model.

    Use `Engine.from_pretrained`. On a CPU a Decoder runs the models it knows; elsewhere the model's
    attention is swapped for tree attention by name. An engine serves one search at a time; further
    ones wait.

    Attributes:
        name: how the model was named. model, tokenizer: the transformers objects.
        decoder: the Decoder that has taken over the model's layers (on a CPU, for the models that
            it knows), or None: transformers runs the model.
        context: longest sequence in tokens.
        max_branches: branches decoded in one batch.
        cache: the PagedKVCache.
        token_bytes: UTF-8 bytes of each token id. eos_ids: ids that end a sequence.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "",
        max_branches: int = 64,
        kv_tokens: int | None = None,
        page_size: int = 16,
    ) -> None:
        if max_branches < 1:
            raise ValueError(f"expected max_branches of at least 1, got {max_branches}")
        if kv_tokens is not None and kv_tokens < page_size:
            raise ValueError(f"expected kv_tokens of at least {page_size}, got {kv_tokens}")
        config = model.config
        self.name, self.model, self.tokenizer = name, model.eval(), tokenizer
        self.max_branches = max_branches
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = getattr(config, "num_key_value_heads", None) or self.num_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.num_heads
        self.device, self.dtype = model.device, model.dtype
        self.context = _context(config, kv_tokens)
        layers = config.num_hidden_layers
        token_size = 2 * layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize
        if kv_tokens is None:
            affordable = int(MEMORY_SHARE * _memory(self.device)) // token_size
            kv_tokens = min(max_branches * self.context, affordable)
        self.cache = PagedKVCache(
            layers,
            -(-kv_tokens // page_size),
            page_size=page_size,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            device=self.device,
        )
        self.decoder = Decoder.of(model, self.cache)
        if self.decoder is None:
            model.set_attn_implementation(ATTENTION_NAME)
        table = token_bytes(tokenizer)
        # ids that only pad the model's vocabulary stand for nothing
        self.token_bytes = table + [b""] * (config.vocab_size - len(table))
        self.eos_ids = _eos_ids(model, tokenizer)
        self.lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        max_branches: int = 64,
        kv_tokens: int | None = None,
    ) -> "Engine":
        """Load a model.

        Args:
            path: "nano-marco" or "nano-llama" (bundled), a folder with a Hugging Face config,
                safetensors weights and tokenizer, or a hub id.
            device: where to run; by default "cuda" when there is one, else "cpu".
            dtype: of weights and KV: float32, bfloat16 or float16; by default float32 on a CPU
                and the checkpoint's own on a GPU.
            max_branches: branches decoded in one batch, at least 1.
            kv_tokens: capacity of the KV cache in tokens; by default max_branches whole contexts,
                as far as a quarter of the device's memory goes.

        Raises:
            ModelError: the model cannot be read, or not be run faithfully: pickled weights, remote
                code, quantised weights, a sliding window shorter than the context, attention that
                is not plain softmax.
            ValueError: an option is out of its range.
        """
        place = _device(device)
        chosen = _dtype(dtype, place)
        source = str(path)
        if source in BUNDLED:
            source = str(Path(__file__).parent.parent / "models" / source)
        options: dict[str, Any] = {"trust_remote_code": False}
        _check_source(source, options)
        try:
            config = transformers.AutoConfig.from_pretrained(source, **options)
            _check_config(config)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                source, config=config, dtype=chosen, use_safetensors=True, **options
            )
            tokenizer = _tokenizer(source, options)
        except ModelError:
            raise
        except Exception as error:  # transformers raises many kinds; each names its cause
            cause = (str(error).strip() or repr(error)).splitlines()[0]
            raise ModelError(f"expected a loadable model {str(path)!r}, got: {cause}") from error
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ModelError(f"expected a tokenizer.json in {str(path)!r}, got a slow tokenizer")
        return cls(
            model.to(place),  # type: ignore[arg-type]
            tokenizer,
            name=str(path),
            max_branches=max_branches,
            kv_tokens=kv_tokens,
        )

    def prompt_token_ids(self, messages: list[dict[str, str]], plain: str) -> list[int]:
        """A chat as the model's prompt for its reply.

        Args:
            messages: role and content of each.
            plain: the prompt of a model without a chat template.

        Raises:
            ValueError: the model's template does not take such a chat.
        """
        if self.tokenizer.chat_template is None:
            warnings.warn(
                f"the model {self.name!r} has no chat template: it gets a plain prompt",
                stacklevel=2,
            )
            text = plain
        else:
            try:
                text = self.tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, tokenize=False
                )
            except TemplateError as error:
                roles = ", ".join(each["role"] for each in messages)
                raise ValueError(
                    f"expected a chat that the template of {self.name!r} takes, got the roles "
                    f"{roles}: {error}"
                ) from error
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def forward(
        self, token_ids: list[int], positions: list[int], batch: TreeBatch, *, logits: bool = True
    ) -> torch.Tensor:
        """One token of every query: logits [Q, V]; where they are not wanted [0, V]."""
        ids = torch.tensor(token_ids, device=self.device)
        places = torch.tensor(positions, device=self.device)
        if self.decoder is not None:
            hidden = self.decoder.step(ids, places, batch.slots, batch.plan, hidden=logits)
            return self.model.lm_head(hidden)
        output = self.model(
            input_ids=ids[None],
            position_ids=places[None],
            use_cache=False,
            logits_to_keep=slice(None) if logits else slice(0, 0),
            marco_batch=batch,
        )
        return output.logits[0]

    @torch.inference_mode()
    def sample(
        self,
        token_ids: list[int],
        positions: list[int],
        batch: TreeBatch,
        *,
        seeds: list[int],
        **options: Any,
    ) -> SampledTokens:
        """One token of every query, and the one drawn after it: its position is one further.

        Seeds and options are those of `sample_confidence`. With a Decoder no logits are stored.
        """
        places = torch.tensor(positions, device=self.device)
        options |= {"seeds": torch.tensor(seeds, device=self.device), "positions": places + 1}
        if self.decoder is None:
            return sample_confidence(self.forward(token_ids, positions, batch), **options)
        hidden = self.decoder.step(torch.tensor(token_ids), places, batch.slots, batch.plan)
        head = self.model.lm_head
        return lm_head_confidence(hidden, head.weight, bias=head.bias, **options)

    @torch.inference_mode()
    def prefill(
        self, token_ids: list[int], slots: torch.Tensor, before: torch.Tensor, start: int
    ) -> None:
        """Compute the KV of a prompt with PyTorch's attention, in chunks; without a decoder only.

        Args:
            token_ids: n consecutive tokens.
            slots: [n] int64, where their KV goes.
            before: [start] int64, the slots of everything in front of them.
            start: position of the first.
        """
        base = getattr(self.model, self.model.base_model_prefix)
        for begin in range(0, len(token_ids), PREFILL_CHUNK):
            end = min(begin + PREFILL_CHUNK, len(token_ids))
            path = torch.cat([before, slots[:end]])
            base(
                input_ids=torch.tensor([token_ids[begin:end]], device=self.device),
                position_ids=torch.arange(start + begin, start + end, device=self.device)[None],
                use_cache=False,
                marco_batch=PromptBatch(self.cache, slots[begin:end], path),
            )

    def close(self) -> None:
        """Give the model's and the cache's memory back; the engine cannot be used any more."""
        del self.model, self.cache, self.decoder

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _tokenizer(source: str, options: dict[str, Any]) -> Any:
    """The tokenizer as its tokenizer.json defines it, if its configuration names no special class.

    AutoTokenizer would take the class of the model's family (Qwen2Tokenizer for "qwen2"), which
    replaces the file's rule for cutting text into words by its own.
    """
    named = get_tokenizer_config(source, **options).get("tokenizer_class")
    if named in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return transformers.PreTrainedTokenizerFast.from_pretrained(source, **options)
    return transformers.AutoTokenizer.from_pretrained(source, **options)


def _device(device: str | torch.device | None) -> torch.device:
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"expected device to be cpu or cuda, got {device!r}") from error
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"expected device to be cpu or cuda, got {str(place)!r}")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"expected a GPU of this machine, which has {torch.cuda.device_count()}, "
            f"got {str(place)!r}"
        )
    return place


def _dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype | str:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else "auto"
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    chosen = known.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if chosen not in known.values():
        raise ValueError(f"expected dtype to be one of {[*known]}, got {dtype!r}")
    return chosen


def _check_source(source: str, options: dict[str, Any]) -> None:
    """A folder must hold a config and safetensors; anything else is left to the hub."""
    folder = Path(source)
    if not source or not folder.is_dir():
        if folder.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
            known = ", ".join(BUNDLED)
            raise ModelError(f"expected {known}, a model folder or a hub id, got {source!r}")
        return
    options["local_files_only"] = True
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"expected a config.json in {source!r}, got none")
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"expected readable JSON in {str(config)!r}, got: {error}") from error
    if not isinstance(fields, dict):
        raise ModelError(f"expected a JSON object in {str(config)!r}, got {type(fields).__name__}")
    if fields.get("auto_map"):
        raise ModelError(f"expected a model that transformers knows, got remote code in {source!r}")
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"expected a tokenizer.json in {source!r}, got none")
    if not [*folder.glob("*.safetensors")]:
        pickled = [each.name for kind in ("*.bin", "*.pt", "*.pth") for each in folder.glob(kind)]
        got = f"pickled weights ({pickled[0]}), which are never loaded" if pickled else "none"
        raise ModelError(f"expected safetensors weights in {source!r}, got {got}")


def _check_config(config: Any) -> None:
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError("expected weights in float32, bfloat16 or float16, got quantised weights")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"expected a decoder-only model, got {config.model_type!r}")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") in ("dynamic", "longrope"):
        raise ModelError(
            "expected rope scaling that does not depend on the sequence length, got "
            f"{rope['rope_type']!r}: cached keys would change as a path grows"
        )
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    if size % 16 or not 16 <= size <= 256:
        raise ModelError(f"expected a head size of 16 to 256 in steps of 16, got {size}")


def _context(config: Any, kv_tokens: int | None) -> int:
    """The longest sequence; a sliding window must not be shorter."""
    context = int(config.max_position_embeddings)
    if kv_tokens is not None:
        context = min(context, kv_tokens)
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds if kinds else window is not None
    if slides and window is not None and window < context:
        raise ModelError(
            f"expected a sliding window of at least the context ({context} tokens), got {window}; "
            f"kv_tokens={window} limits the context to the window"
        )
    return context


def _memory(device: torch.device) -> int:
    """Bytes of memory of the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    found = {tokenizer.eos_token_id}
    for config in (model.generation_config, model.config):
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, list) else [ids])
    return frozenset(each for each in found if each is not None)
