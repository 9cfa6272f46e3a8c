"""Whether a model computes in an engine what it computes in transformers alone: one short path."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from marco_fast.engine.branches import Segment
from marco_fast.engine.kv_cache import PagedKVCache
from marco_fast.engine.quantized import rounds_activations
from marco_fast.engine.runner import Runner, TreeBatch, plan_segments
from marco_fast.errors import ModelError

__all__ = ["NO_NUMBERS", "TOLERANCE", "ForwardCheck", "distance", "looked_at"]

LOG = logging.getLogger("marco_fast.loading")  # what is done, for a terminal
TEXT = (
    "A train leaves at nine in the morning and needs 3 hours and 20 minutes. "
    "When does it arrive, if it has to wait for a quarter of an hour on its way?"
)
NO_NUMBERS = "expected finite logits, got NaN or infinity from the model"
STEPS = 2  # decoded tokens of each branch
BRANCHES = 2
PAGES = 6  # enough for all that, whatever the size of a page
TOP_K = 32  # logprobs of each row that are compared
# The largest `distance` of a right model. Measured: right ones, of 2 to 48 layers, have up to 2e-5
# in float32, 0.006 in float16 and 0.13 in bfloat16 (random weights that carry errors far; others
# 0.04, trained ones 0.02). Wrong ones have 0.0036 (a soft cap that hardly bends anything) to 2.5 (a
# recurrence without its state); a slot too far gives 0.1 to 2.0, or no number.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}


class ForwardCheck:
    """A prompt and branches from it, and their logprobs by the model alone.

    The prompt is one token longer than a page, as far as context and cache go. Make this before a
    runner takes the model over.

    Args:
        model: the transformers model, with attention of its own.
        tokenizer: it cuts the prompt.
        cache: that of the runner to be checked.
        context: positions that a path may have.

    Raises:
        ModelError: the model's forward pass raised an error.
    """

    def __init__(self, model: Any, tokenizer: Any, cache: PagedKVCache, context: int) -> None:
        LOG.info("computing a short path by transformers")
        self.model = model
        # Activations of 8 bits are rounded otherwise where they differ by a float's last bit.
        dtype = torch.bfloat16 if rounds_activations(model) else model.dtype
        self.tolerance = TOLERANCE.get(dtype, 0.0)
        steps = min(STEPS, context, cache.num_pages * cache.page_size)
        # In a small cache one branch goes on in the prompt's own segment.
        branches = BRANCHES if cache.num_pages >= PAGES else 1
        room = min(context, cache.num_pages * cache.page_size) - steps
        length = min(cache.page_size + 1, room)
        ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
        ids = [each for each in ids if each < model.config.vocab_size] or [0]
        ids *= -(-(length + branches * steps) // len(ids))
        self.prompt, rest = ids[:length], ids[length:]
        self.branches = [rest[each * steps :][:steps] for each in range(branches)]
        tokens = torch.tensor([self.prompt + each for each in self.branches], device=model.device)
        with looked_at(model):
            logits = model(input_ids=tokens, use_cache=False).logits[:, -steps:]
        if logits.isnan().any():  # of queries or keys, which `attention_shape` does not see
            raise ModelError(NO_NUMBERS)
        self.logprobs = logits.float().log_softmax(-1)  # [branches, steps, V]

    def compare(self, runner: Runner) -> None:
        """Compute the same by a runner, in the pages of its cache, which keeps no trace of it.

        Raises:
            ModelError: the runner computes something else.
        """
        LOG.info("computing the same path by the engine")
        cache = runner.cache
        # The same pages with bookkeeping of their own: a search then gets the first node and page.
        runner.cache = copy.deepcopy(cache, {id(cache.k): cache.k, id(cache.v): cache.v})
        try:
            with looked_at(self.model):
                errors = self._errors(runner, runner.cache)
        finally:
            runner.cache = cache
        apart = distance(errors, self.logprobs)
        if not apart <= self.tolerance:  # NaN is apart, too
            name, largest = self.model.config.model_type, errors.abs().max().item()
            raise ModelError(
                f"expected the logprobs of {name!r} as transformers computes them, got others by "
                f"up to {largest:.2g}: it cannot be run"
            )

    def _errors(self, runner: Runner, cache: PagedKVCache) -> torch.Tensor:
        """[branches, steps, TOP_K] differences of the runner's largest logprobs."""
        count, (branches, steps, _) = len(self.prompt), self.logprobs.shape
        segments = [Segment(None, 0, self.prompt, prompt=True, kv=cache.add_root())]
        if self.prompt:
            runner.compute(segments[0], cache.extend(segments[0].kv, count), branches)
        for _ in range(branches if branches > 1 else 0):
            segments.append(Segment(segments[0], count, [], kv=cache.fork(segments[0].kv)))
        leaves = segments[-branches:]
        slots = cache.slots_ahead([each.kv for each in leaves], steps)
        plan = plan_segments(runner, segments, leaves, max_new_tokens=steps)
        top_k = min(TOP_K, self.logprobs.shape[-1])
        errors = []
        for step, ids in enumerate(torch.tensor(self.branches, device=cache.device).T):
            plan.advance()
            at = torch.full_like(ids, count + step)
            options = {"seeds": torch.zeros_like(at), "positions": at + 1, "top_k": top_k}
            drawn = runner.sample(ids.contiguous(), at, TreeBatch(plan, slots[step]), options)
            # Where the runner's logits are NaN, there is no id: the error is NaN, too.
            plain = self.logprobs[:, step].gather(1, drawn.topk_ids.long().clamp(min=0))
            errors.append(drawn.topk_logprobs - plain)
        return torch.stack(errors, 1)


@contextmanager
def looked_at(model: Any) -> Iterator[None]:
    """What a model's forward pass raises inside becomes a ModelError of one line.

    Inside it computes in its own dtype, whatever the caller has set.
    """
    try:
        with torch.inference_mode(), torch.autocast(model.device.type, enabled=False):
            yield
    except Exception as error:  # models raise many kinds; each names its cause
        name = model.config.model_type
        cause = (str(error).strip() or repr(error)).splitlines()[0]
        if isinstance(error, ModelError):
            raise ModelError(f"{cause} ({name!r})") from error
        raise ModelError(
            f"expected a model that needs tokens and their positions alone, got {name!r}, whose "
            f"forward pass raised: {cause}"
        ) from error


def distance(errors: torch.Tensor, plain: torch.Tensor) -> float:
    """The largest root mean square of a row of errors, [..., K], over the model's own spread.

    The spread is the standard deviation of all its logits or logprobs, [..., V], but for -inf.
    """
    spread = plain[plain > -torch.inf].std()
    apart = errors.square().mean(-1).sqrt().max()
    return (apart / spread).item() if apart else 0.0
