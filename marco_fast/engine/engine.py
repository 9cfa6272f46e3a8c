"""Engine: a Hugging Face causal language model as it is, over a paged tree KV cache."""

import logging
import os
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from marco_fast.engine.kv_cache import PagedKVCache
from marco_fast.engine.loading.architectures import check_architecture
from marco_fast.engine.loading.attention_shape import AttentionShape, attention_shape
from marco_fast.engine.loading.check import ForwardCheck
from marco_fast.engine.loading.context import REACH, Limit, context_of, limit_of
from marco_fast.engine.loading.load import load_model
from marco_fast.engine.loading.memory import affordable_tokens, weights_size
from marco_fast.engine.loading.shedding import shed_memory
from marco_fast.engine.loading.tokenizer import check_tokenizer, eos_ids_of
from marco_fast.engine.loading.weights import check_model
from marco_fast.engine.native_runner import NativeRunner
from marco_fast.engine.ownership import SearchLock, check_free, take_over
from marco_fast.engine.prompts import Prompts
from marco_fast.engine.quantized import round_activations
from marco_fast.engine.runner import Runner, TreeBatch
from marco_fast.engine.token_bytes import token_bytes
from marco_fast.engine.transformers_runner import TransformersRunner
from marco_fast.ops import SampledTokens
from marco_fast.ops.isolation import exact_products, float32_default, isolated
from marco_fast.ops.numbers import described, whole

__all__ = ["Engine"]

LOG = logging.getLogger("marco_fast.loading")  # what is done, for a terminal


class Engine:
    """Decodes many branches of many trees with one model.

    Use `Engine.from_pretrained`. A runner computes the model's layers: in C++ on a CPU, for the
    models that it knows, else transformers with the model's attention swapped for tree attention.
    An engine serves one search at a time; those of other threads wait. One that was idle when its
    process was forked works in the child, too; it cannot be pickled or copied.

    Attributes:
        name: how the model was named. model, tokenizer: the transformers objects.
        runner: the NativeRunner that has taken over the model's layers, or a TransformersRunner.
        context: longest path in tokens, its prompt included.
        max_branches: branches decoded in one batch.
        cache: the PagedKVCache.
        token_bytes: UTF-8 bytes of each token id. eos_ids: ids that end a sequence.
        prompts: makes token ids of chats. lock: held by the search that has the engine.

    Raises:
        ModelError: the model cannot be run, or its layers belong to another engine.
        ValueError: an option is out of its range.
    """

    model: Any
    cache: PagedKVCache
    context: int
    runner: Runner

    @isolated
    @exact_products
    @float32_default
    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "",
        max_branches: int = 64,
        context: int | None = None,
        kv_tokens: int | None = None,
        page_size: int = 16,
        check: bool = True,
    ) -> None:
        max_branches = _at_least("max_branches", max_branches, 1)
        context = context if context is None else _at_least("context", context, 2)
        page_size = _at_least("page_size", page_size, 1)
        kv_tokens = kv_tokens if kv_tokens is None else _at_least("kv_tokens", kv_tokens, page_size)
        check_model(model)
        check_free(model)
        check_architecture(model.config)
        check_tokenizer(tokenizer, model, name)
        self.name, self.tokenizer, self.lock = name, tokenizer, SearchLock()
        self.max_branches = max_branches
        self.device, self.dtype = model.device, model.dtype
        self.prompts = Prompts(tokenizer, name)
        table = token_bytes(tokenizer)
        # ids that only pad the model's vocabulary stand for nothing
        self.token_bytes = table + [b""] * (model.config.vocab_size - len(table))
        self.eos_ids = eos_ids_of(model, tokenizer)
        shape = self._look_at(model.eval(), context, kv_tokens)
        self.cache = self._make_cache(shape.num_layers, weights_size(model), kv_tokens, page_size)
        if context is None:  # no path is longer than all that the cache holds
            self.context = min(self.context, self.cache.num_pages * page_size)
        # Last: a model that was refused up to here is still whole.
        self._take_over(model, check)

    def _look_at(self, model: Any, context: int | None, kv_tokens: int | None) -> AttentionShape:
        """Find the model's heads, and how long a path may be."""
        self.context = context_of(limit_of(model.config), self.name, context, kv_tokens)
        shape = attention_shape(model, self.context)
        if shape.reach < self.context:  # a window that the configuration calls by another name
            limit = Limit(shape.reach, REACH)
            self.context = context_of(limit, self.name, context, kv_tokens)
        self.num_heads, self.num_kv_heads = shape.num_heads, shape.num_kv_heads
        self.head_dim = shape.head_dim
        return shape

    def _take_over(self, model: Any, check: bool) -> None:
        """Make the runner, whose the model's layers then are, and see whether it computes right."""
        plain = ForwardCheck(model, self.tokenizer, self.cache, self.context) if check else None
        attention = model.config._attn_implementation
        LOG.info("packing the weights")
        native = NativeRunner.of(model, self.cache)
        self.model = model
        self.runner = native or TransformersRunner(
            model, self.cache, num_heads=self.num_heads, context=self.context
        )
        self._give_back = take_over(self, model, None if native else attention)
        if plain is not None:
            try:
                plain.compare(self.runner)
            except BaseException:
                self._give_back()
                raise

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
        context: int | None = None,
        kv_tokens: int | None = None,
        activations: str | None = None,
        check: bool = True,
    ) -> "Engine":
        """Load a model.

        Args:
            path: "nano-marco" or "nano-llama" (bundled), a folder with a Hugging Face config,
                safetensors weights and tokenizer, a hub id, or a GGUF file (the first part of it).
            device: where to run; by default "cuda" when there is one, else "cpu".
            dtype: of weights and KV: float32, bfloat16 or float16; by default the checkpoint's own
                on a GPU, on a CPU float32 but for a bfloat16 checkpoint of 67 M parameters or more
                that C++ runs. int8, int4, on a CPU alone: weights are quantised at loading, all
                else is float32. A GGUF file's quantised weights stay so on a CPU, else they get it.
            max_branches: branches decoded in one batch, at least 1.
            context: longest path in tokens, prompt included, at least 2; by default what the model
                takes: its positions, or less where it has a sliding window, chunks, or a RoPE that
                is scaled beyond a length (a UserWarning says so), and no more than the cache holds.
            kv_tokens: capacity of the KV cache in tokens, all branches together; by default
                max_branches whole contexts, as far as a quarter of what the weights leave goes.
            activations: "int8": what quantised weights are multiplied by is rounded to 8 bits, with
                a scale per 32 numbers: faster, and less exact (docs/gguf.md).
            check: compare the logprobs of one short path with those of transformers alone.

        Raises:
            ModelError: the model cannot be read, or not be run faithfully: pickled weights, remote
                code, weights of a quantisation that is not known, tensors that are missing or
                of no use, a tokenizer of another model, layers that are not softmax attention
                over what the cache holds, or the check found other logprobs.
            ValueError: an option is out of its range, a context is longer than the model's, or the
                path is not Unicode.
        """
        with shed_memory():
            model, tokenizer = load_model(path, device, dtype)
            round_activations(model, activations)
            return cls(
                model, tokenizer, name=str(path), max_branches=max_branches,
                context=context, kv_tokens=kv_tokens, check=check,
            )  # fmt: skip

    def _make_cache(self, layers: int, weights: int, tokens: int | None, page: int) -> PagedKVCache:
        token_size = 2 * layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize
        if tokens is None:
            affordable = affordable_tokens(self.device, weights, token_size)
            tokens = max(page, min(self.max_branches * self.context, affordable))
        return PagedKVCache(
            layers, -(-tokens // page), page_size=page, num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim, dtype=self.dtype, device=self.device,
        )  # fmt: skip

    def prompt_token_ids(
        self,
        messages: list[dict[str, str]],
        without_template: str,
        options: dict[str, Any] | None = None,
    ) -> list[int]:
        """A chat as the model's prompt for its reply; what its contents say is text, never special.

        Args:
            messages: role and content of each.
            without_template: the prompt of a model that has no chat template. The tokens with which
                its tokenizer begins a sequence, such as a BOS, come in front.
            options: of the chat template; a UserWarning names those that it does not read.

        Raises:
            ValueError: the template does not take such a chat or options, or leaves the question
                out; a content is not Unicode; or the engine is closed.
        """
        self.lock.check_open()
        if self.tokenizer.chat_template is not None:
            ids = self.prompts.of_chat(messages, options)
        else:
            warnings.warn(
                f"the model {self.name!r} has no chat template: it gets a prompt of its own",
                stacklevel=2,
            )
            ids = self.prompts.of_text(without_template)
        if not ids:
            raise ValueError("expected a question that the tokenizer knows, got one without tokens")
        return ids

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
        raise TypeError("expected an Engine to stay where it is, got a copy or a pickle of it")

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
    number = whole(value)
    if number is None or number < least:
        raise ValueError(f"expected {name} of at least {least}, got {described(value)}")
    return number
