"""Engine: a Hugging Face causal language model as it is, over a paged tree KV cache."""

import os
import threading
import warnings
from types import TracebackType
from typing import Any

import torch
from jinja2 import TemplateError

from marco_fast.engine.kv_cache import PagedKVCache
from marco_fast.engine.loading.context import context_of, memory_of
from marco_fast.engine.loading.load import eos_ids_of, load_model
from marco_fast.engine.native_runner import NativeRunner
from marco_fast.engine.runner import Runner, TreeBatch
from marco_fast.engine.token_bytes import token_bytes
from marco_fast.engine.transformers_runner import TransformersRunner
from marco_fast.ops import SampledTokens
from marco_fast.ops.isolation import float32_default, isolated

__all__ = ["Engine"]

MEMORY_SHARE = 0.25  # of the machine's memory, for the KV cache when kv_tokens is not given


class Engine:
    """Decodes many branches of many trees with one model.

    Use `Engine.from_pretrained`. A runner computes the model's layers: in C++ on a CPU, for the
    models that it knows, else transformers with the model's attention swapped for tree attention.
    An engine serves one search at a time; further ones wait.

    Attributes:
        name: how the model was named. model, tokenizer: the transformers objects.
        runner: the NativeRunner that has taken over the model's layers, or a TransformersRunner.
        context: longest sequence in tokens.
        max_branches: branches decoded in one batch.
        cache: the PagedKVCache.
        token_bytes: UTF-8 bytes of each token id. eos_ids: ids that end a sequence.
    """

    @isolated
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
        self.context = context_of(config, kv_tokens)
        self.cache = self._make_cache(config.num_hidden_layers, kv_tokens, page_size)
        native = NativeRunner.of(model, self.cache)
        self.runner: Runner = native or TransformersRunner(model, self.cache)
        table = token_bytes(tokenizer)
        # ids that only pad the model's vocabulary stand for nothing
        self.token_bytes = table + [b""] * (config.vocab_size - len(table))
        self.eos_ids = eos_ids_of(model, tokenizer)
        self.lock = threading.Lock()

    @classmethod
    @isolated
    @float32_default
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
                is not softmax alone.
            ValueError: an option is out of its range.
        """
        model, tokenizer = load_model(path, device, dtype)
        return cls(model, tokenizer, name=str(path), max_branches=max_branches, kv_tokens=kv_tokens)

    def _make_cache(self, layers: int, kv_tokens: int | None, page_size: int) -> PagedKVCache:
        token_size = 2 * layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize
        if kv_tokens is None:
            affordable = int(MEMORY_SHARE * memory_of(self.device)) // token_size
            kv_tokens = min(self.max_branches * self.context, affordable)
        return PagedKVCache(
            layers,
            -(-kv_tokens // page_size),
            page_size=page_size,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    def prompt_token_ids(self, messages: list[dict[str, str]], without_template: str) -> list[int]:
        """A chat as the model's prompt for its reply.

        Args:
            messages: role and content of each.
            without_template: the prompt of a model that has no chat template.

        Raises:
            ValueError: the model's template does not take such a chat.
        """
        if self.tokenizer.chat_template is None:
            warnings.warn(
                f"the model {self.name!r} has no chat template: it gets a prompt of its own",
                stacklevel=2,
            )
            text = without_template
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

    @isolated
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
        """Decode one token of every query, and draw the token after it, at the next position.

        Seeds and options are those of `sample_confidence`.
        """
        at = torch.tensor(positions, device=self.device)
        options |= {"seeds": torch.tensor(seeds, device=self.device), "positions": at + 1}
        ids = torch.tensor(token_ids, device=self.device)
        return self.runner.sample(ids, at, batch, options)

    def close(self) -> None:
        """Give the model's and the cache's memory back; the engine cannot be used any more."""
        del self.model, self.cache, self.runner

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
