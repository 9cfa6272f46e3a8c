"""Every kernel once on the device, small, against float64: does anything run, and is it right."""

from collections.abc import Iterator
from functools import partial

import torch

from bench.common.trees import prompt_and_branches
from bench.common.trees import search as search_tree
from bench.gpu.machine import Case, Machine
from bench.gpu.parts.checks import attention, confidence, lm_head, repeats
from bench.gpu.parts.inputs import hostile

BF16, FP32 = torch.bfloat16, torch.float32


def cases(machine: Machine) -> Iterator[Case]:
    """The most used kernels first."""
    yield from confidence_cases(machine)
    yield from lm_head_cases(machine)
    yield from attention_cases(machine)
    yield Case("advance", partial(attention.check_advance, machine))
    yield Case("a captured step", partial(repeats.check_replays, machine, 3 - 2 * machine.dry))


def confidence_cases(machine: Machine) -> Iterator[Case]:
    """Ordinary rows, and on a GPU rows with NaN."""
    names = ("top_p",) if machine.dry else ("plain", "top_p", "wide top_p", "greedy", "min_p")
    rows, vocab_size = (2, 4112) if machine.dry else (5, 8224)
    for kind, dtype in (("normal", BF16),) if machine.dry else (("normal", BF16), ("nan", FP32)):
        told = f"{kind} {str(dtype)[6:]}"
        make = partial(hostile, machine, kind, rows, vocab_size, dtype)
        yield Case(
            f"topk_confidence {told}",
            lambda make=make: confidence.check_confidence(machine, make()),
        )
        yield Case(
            f"sample_confidence {told}",
            lambda make=make: confidence.check_sampling(machine, make(), names),
        )


def lm_head_cases(machine: Machine) -> Iterator[Case]:
    """Draws and products; on a GPU also many rows, batches and shards."""
    names = ("plain",) if machine.dry else ("plain", "top_p", "wide top_p", "greedy")
    vocab_size, size = (304, 64) if machine.dry else (8224, 256)
    rows = 2 if machine.dry else 5
    draws = partial(lm_head.check_lm_head_draws, machine, vocab_size, size, BF16, names)
    product = partial(lm_head.check_lm_head_product, machine)
    yield Case("lm_head_confidence, draws", draws)
    yield Case("lm_head_confidence, product", partial(product, rows, vocab_size, size, BF16))
    if machine.dry:
        return
    yield Case(
        "lm_head_confidence, a library's product", partial(product, 80, vocab_size, size, BF16)
    )
    yield Case(
        "lm_head_confidence, batches and shards",
        partial(lm_head.check_lm_head_batches, machine, vocab_size, size, BF16),
    )


def attention_cases(machine: Machine) -> Iterator[Case]:
    """append_kv, and tree_attention on a small search; on a GPU with more heads and types."""
    for heads in ("qwen2-7b", "nano-marco"):
        yield Case(f"append_kv {heads}", partial(attention.check_append, machine, heads))
    check = partial(attention.check_attention, machine)
    if machine.dry:
        tree = prompt_and_branches(20, 3, 5)
        yield Case("tree_attention, a search", partial(check, "nano-marco", tree, BF16))
        return
    tree, wide = search_tree(2, 4, 3, 32, 200), prompt_and_branches(300, 16, 40)
    yield Case("tree_attention, a search", partial(check, "qwen2-7b", tree, BF16))
    yield Case("tree_attention, a shared prompt", partial(check, "qwen2-7b", wide, BF16))
    yield Case("tree_attention, heads of 64", partial(check, "llama-1b", wide, BF16))
    yield Case("tree_attention, float32", partial(check, "qwen2-7b", tree, FP32))
