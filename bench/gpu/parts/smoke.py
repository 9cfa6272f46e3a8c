"""Every kernel once on the device, small, against float64: does anything run, and is it right."""

from collections.abc import Iterator
from functools import partial

import torch

from bench.common.trees import prompt_and_branches
from bench.common.trees import search as search_tree
from bench.gpu.machine import Case, Machine
from bench.gpu.parts import checks

BF16, FP32 = torch.bfloat16, torch.float32


def cases(machine: Machine) -> Iterator[Case]:
    """The most used kernels first."""
    kinds = (("normal", BF16),) if machine.dry else (("normal", BF16), ("nan", FP32))
    vocab, size = (4112, 64) if machine.dry else (8224, 256)
    rows = 2 if machine.dry else 5
    model = "nano-marco" if machine.dry else "qwen2-7b"
    tree = prompt_and_branches(20, 3, 5) if machine.dry else search_tree(2, 4, 3, 32, 200)
    wide = prompt_and_branches(20, 3, 5) if machine.dry else prompt_and_branches(300, 16, 40)
    for kind, dtype in kinds:
        told = f"{kind} {str(dtype)[6:]}"
        make = partial(checks.hostile, machine, kind, rows, vocab, dtype)
        yield Case(
            f"topk_confidence {told}",
            lambda make=make: checks.check_confidence(machine, make()),
        )
        names = ("top_p",) if machine.dry else ("plain", "top_p", "wide top_p", "greedy", "min_p")
        yield Case(
            f"sample_confidence {told}",
            lambda make=make, names=names: checks.check_sampling(machine, make(), names),
        )
    vocab = 304 if machine.dry else vocab
    names = ("plain",) if machine.dry else ("plain", "top_p", "wide top_p", "greedy")
    yield Case("lm_head_confidence, draws", partial(
        checks.check_lm_head_draws, machine, vocab, size, BF16, names))  # fmt: skip
    yield Case("lm_head_confidence, product", partial(
        checks.check_lm_head_product, machine, rows, vocab, size, BF16))  # fmt: skip
    if not machine.dry:
        yield Case("lm_head_confidence, a library's product", partial(
            checks.check_lm_head_product, machine, 80, vocab, size, BF16))  # fmt: skip
        yield Case("lm_head_confidence, batches and shards", partial(
            checks.check_lm_head_batches, machine, vocab, size, BF16))  # fmt: skip
    for heads in ("qwen2-7b", "nano-marco"):
        yield Case(f"append_kv {heads}", partial(checks.check_append, machine, heads))
    yield Case("tree_attention, a search", partial(
        checks.check_attention, machine, model, tree, BF16))  # fmt: skip
    if not machine.dry:
        yield Case("tree_attention, a shared prompt", partial(
            checks.check_attention, machine, model, wide, BF16))  # fmt: skip
        yield Case("tree_attention, heads of 64", partial(
            checks.check_attention, machine, "llama-1b", wide, BF16))  # fmt: skip
        yield Case("tree_attention, float32", partial(
            checks.check_attention, machine, model, tree, FP32))  # fmt: skip
    yield Case("advance", partial(checks.check_advance, machine))
    yield Case("a captured step", partial(checks.check_replays, machine, 3 - 2 * machine.dry))
