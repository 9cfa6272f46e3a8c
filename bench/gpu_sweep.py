"""Times the launchers' choices against the others they could have made, on a GPU.

python -m bench.gpu_sweep [--out FILE.json] [--dry-run]

The choices are small pure functions (kernels/topk_confidence.split_of, kernels/lm_head_confidence:
tiles, splits and where a library's product takes over; ops/tree_items: rows of an item and how many
items are enough). No result depends on them, so this is about time alone. Each
row has the microseconds of every choice, and how far the launcher's own is from the best.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def confidence(machine: Any) -> list[dict]:
    """topk_confidence by chunks a program."""
    import torch

    from bench.gpu_times import random_logits
    from marco_fast.kernels import topk_confidence as kernels

    rows = []
    vocab = 9001 if machine.dry else 151936
    chunks = -(-vocab // kernels.CHUNK.value)
    for batch in (2,) if machine.dry else (1, 8, 32, 64, 128, 256, 1024):
        nbytes = 2 * batch * vocab
        inputs = machine.rotating(
            lambda _: random_logits(machine, batch, vocab, torch.bfloat16),  # noqa: B023
            nbytes,
        )
        ids = torch.zeros(batch, dtype=torch.int64, device=machine.device)
        outputs = [torch.empty(batch, device=machine.device) for _ in range(3)]
        outputs.append(torch.empty(batch, 5, device=machine.device))
        outputs.append(torch.empty(batch, 5, dtype=torch.int32, device=machine.device))
        outputs.append(torch.empty(batch, dtype=torch.int32, device=machine.device))
        choices = {}
        for per_program in (1, 2, 3, 5, 10, 19, 38):
            splits = (-(-chunks // per_program), per_program)
            choices[f"{per_program} chunks"] = [
                lambda x=x, splits=splits: kernels.topk_confidence(
                    x,
                    ids,  # noqa: B023
                    1.0,
                    False,
                    *outputs,  # noqa: B023
                    splits=splits,
                )
                for x in inputs
            ]
        own = kernels.split_of(batch, chunks, kernels.processors_of(machine.device))[1]
        rows.append(compare(machine, f"topk_confidence {batch}", choices, f"{own} chunks"))
    return rows


def lm_head(machine: Any) -> list[dict]:
    """lm_head_confidence by entries of a tile, stages and programs, and as a library's product."""
    import torch

    from bench.gpu_checks import lm_head_inputs
    from marco_fast.kernels import lm_head_confidence as kernels
    from marco_fast.ops.confidence import empty_samples, sampling_arguments
    from tests.draws import keyed

    rows = []
    vocab, size = (500, 64) if machine.dry else (152064, 3584)
    arch = kernels.architecture(machine.device)
    processors = kernels.processors_of(machine.device)
    for batch in (2,) if machine.dry else (1, 16, 32, 64, 128, 256):
        inputs = machine.rotating(
            lambda _: lm_head_inputs(machine, batch, vocab, size, torch.bfloat16),  # noqa: B023
            2 * vocab * size,
        )
        keys = {key: x.to(machine.device) for key, x in keyed(batch).items()}
        sampling = sampling_arguments(
            inputs[0][0], 0.7, 0.95, 0.0, 0, *keys.values(), "raw", None, None, None
        )
        outputs = empty_samples(batch, 5, machine.device)

        def calls(sampling=sampling, outputs=outputs, inputs=inputs, **choice: Any) -> list:
            return [
                lambda x=x: kernels.lm_head_confidence(
                    *x, None, torch.float32, sampling, False, False, *outputs, **choice
                )
                for x in inputs
            ]

        own = kernels.tiles(arch, torch.bfloat16, kernels.fit_descriptors(arch, *inputs[0]))
        choices = {"own": calls()}
        for entries, stages in (
            ((64, 4),) if machine.dry else ((64, 4), (64, 6), (128, 4), (128, 3))
        ):
            scan = own[0]._replace(entries=entries, stages=stages)
            for times in (1,) if machine.dry else (1, 2, 3, 4, 8):
                name = f"{entries} entries, {stages} stages, {times} a processor"
                splits = max(1, times * processors // -(-batch // scan.rows))
                choices[name] = calls(tile=(scan, own[1]), splits=splits)
        rows.append(compare(machine, f"lm_head_confidence {batch}", choices, "own"))
    return rows


def attention(machine: Any) -> list[dict]:
    """tree_attention by rows of an item and by how many items are enough."""
    import torch

    from bench.gpu_checks import attention_inputs
    from bench.gpu_times import forests
    from bench.trees import HEADS
    from marco_fast.kernels import tree_attention as kernels
    from marco_fast.ops.tree_items import ENOUGH_ITEMS, tree_items

    rows = []
    model = "nano-marco" if machine.dry else "qwen2-7b"
    heads, kv_heads, dim = HEADS[model]
    for name, tree in forests(machine).items():
        q, k, v, plan = attention_inputs(machine, model, tree, torch.bfloat16)
        out, choices = torch.empty_like(q), {}
        for tile_rows in (0, 16, 32):
            for enough in (64, 256, ENOUGH_ITEMS, 1024):
                items = tree_items(
                    plan.native, group=heads // kv_heads, num_kv_heads=kv_heads, head_dim=dim,
                    device=machine.device, tile_rows=tile_rows, enough_items=enough,
                )  # fmt: skip
                words = items.num_partials * heads * (dim + 2)
                space = torch.empty(words, device=machine.device)
                held = SimpleNamespace(items=lambda device, items=items: items)

                def call(held: Any = held, space: Any = space) -> None:
                    kernels.tree_attention(q, k, v, held, dim**-0.5, out, None, space)  # noqa: B023

                choices[f"rows {tile_rows or 'auto'}, {enough} items"] = [call]
        own = f"rows auto, {ENOUGH_ITEMS} items"
        rows.append(compare(machine, f"tree_attention {name}", choices, own))
    return rows


def compare(
    machine: Any, case: str, choices: dict[str, Sequence[Callable[[], object]]], own: str
) -> dict:
    """Every choice's time, the best one, and the launcher's own relative to it."""
    timings = machine.time(*choices.values())
    times = {name: timing.median * 1e6 for name, timing in zip(choices, timings, strict=True)}
    best = min(times, key=times.__getitem__)
    mine = times.get(own)
    row = {"case": case, "own": own, "best": best, "best_us": times[best], "us": times}
    row["own_over_best"] = mine / times[best] if mine else None
    told = f"own {own} {mine:.1f} us" if mine else f"own {own} not timed"
    print(f"{case:44} best {best} {times[best]:.1f} us, {told}", flush=True)
    return row


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_sweep", description=__doc__)
    parser.add_argument("--out", type=Path, help="where to write the times as JSON")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, no GPU")
    args = parser.parse_args(argv)
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    import torch

    from bench.gpu_machine import Machine

    if not args.dry_run and not torch.cuda.is_available():
        parser.error("expected a CUDA GPU, found none (--dry-run rehearses without one)")
    machine = Machine(args.dry_run)
    rows = machine.describe() + confidence(machine) + lm_head(machine) + attention(machine)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
