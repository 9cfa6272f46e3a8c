"""Engine: a Hugging Face causal language model as it is, over a paged tree KV cache."""

import operator
import os
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from jinja2 import TemplateError

from marco_fast.engine.kv_cache import PagedKVCache
from marco_fast.engine.loading.context import context_of, memory_of
from marco_fast.engine.loading.load import eos_ids_of, load_model
from marco_fast.engine.native_runner import NativeRunner
from marco_fast.engine.ownership import SearchLock, check_free, take_over
from marco_fast.engine.runner import Runner, TreeBatch
from marco_fast.engine.token_bytes import token_bytes
from marco_fast.engine.transformers_runner import TransformersRunner
from marco_fast.ops import SampledTokens

__all__ = ["Engine"]

MEMORY_SHARE = 0.25  # of the machine's memory, for the KV cache when kv_tokens is not given


class Engine:
    """Decodes many branches of many trees with one model.

    Use `Engine.from_pretrained`. A runner computes the model's layers: in C++ on a CPU, for the
    models that it knows, else transformers with the model's attention swapped for tree attention.
    An engine serves one search at a time; those of other threads wait. One that was idle when its
    process was forked works in the child, too; it cannot be pickled or copied.

    Attributes:
        name: how the model was named. model, tokenizer: the transformers objects.
        runner: the NativeRunner that has taken over the model's layers, or a TransformersRunner.
        context: longest sequence in tokens.
        max_branches: branches decoded in one batch.
        cache: the PagedKVCache.
        token_bytes: UTF-8 bytes of each token id. eos_ids: ids that end a sequence.
        lock: held by the search that has the engine.

    Raises:
        ModelError: the model cannot be run, or its layers belong to another engine.
        ValueError: an option is out of its range.
    """

    model: Any
    cache: PagedKVCache
    runner: Runner

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
        max_branches = _at_least("max_branches", max_branches, 1)
        if kv_tokens is not None:
            kv_tokens = _at_least("kv_tokens", kv_tokens, page_size)
        check_free(model)
        config = model.config
        self.name, self.tokenizer, self.lock = name, tokenizer, SearchLock()
        self.max_branches = max_branches
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = getattr(config, "num_key_value_heads", None) or self.num_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.num_heads
        self.device, self.dtype = model.device, model.dtype
        self.context = context_of(config, kv_tokens)
        table = token_bytes(tokenizer)
        # ids that only pad the model's vocabulary stand for nothing
        self.token_bytes = table + [b""] * (config.vocab_size - len(table))
        self.eos_ids = eos_ids_of(model, tokenizer)
        self.cache = self._make_cache(config.num_hidden_layers, kv_tokens, page_size)
        # Last, so that a model which is refused is still whole.
        self.model = model.eval()
        attention = config._attn_implementation
        native = NativeRunner.of(model, self.cache)
        self.runner = native or TransformersRunner(model, self.cache)
        self._give_back = take_over(self, model, None if native else attention)

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
            ValueError: the model's template does not take such a chat, or the engine is closed.
        """
        self.lock.check_open()
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

        Seeds and options are those of `sample_confidence`. Raises ValueError when the engine is
        closed.
        """
        at = torch.tensor(positions, device=self.device)
        options |= {"seeds": torch.tensor(seeds, device=self.device), "positions": at + 1}
        ids = torch.tensor(token_ids, device=self.device)
        return self.runner.sample(ids, at, batch, options)

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self.lock.closed

    def close(self) -> None:
        """Give the model's and the cache's memory back; the engine cannot be used any more.

        Closing again changes nothing. A search of another thread is waited for.

        Raises:
            ValueError: a search of this thread has the engine, which goes on.
        """
        if self.closed:
            return
        self.lock.acquire()
        try:
            if not self.closed:
                self.lock.closed = True
                self._give_back()
                del self.model, self.cache, self.runner
        finally:
            self.lock.release()

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> NoReturn:
            if name in ("model", "cache", "runner") and self.__dict__.get("lock") is not None:
                self.lock.check_open()
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"Engine({self.name!r}, {self.device}, {self.dtype}{state})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "expected an Engine to stay where it is, got a copy or a pickle of it: load one with "
            "Engine.from_pretrained in each process"
        )

    def __enter__(self) -> "Engine":
        self.lock.check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _at_least(name: str, value: object, least: int) -> int:
    """`value` as an int, if it is one and large enough."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"expected {name} of at least {least}, got {value!r}")
    return number
