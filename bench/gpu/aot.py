"""Compile every kernel that the launchers may choose, for GPUs that need not be here.

python -m bench.gpu.aot [--arch sm_90 ...] [--match TEXT] [--out FILE.json]

The launchers are called with every dtype, head size and form of their arguments, and what they
launch is recorded (bench/gpu/launches.py) and compiled. Prints one row per kernel: registers and
shared memory per block, bytes of stack and local memory per thread (spills), and the compiler's
time. The exit code is 1 where a kernel does not compile, or spills on an architecture where it must
not.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import marco_fast as mf
from bench.common.trees import PAGE, prompt_and_branches, tables
from bench.gpu.launches import ARCHITECTURES, Specialization, recording, resources
from marco_fast.ops.attention.attend import AttentionInputs, AttentionOptions, AttentionResult
from marco_fast.ops.attention.work_items import work_items
from marco_fast.ops.dtypes import FLOATS

NO_SPILLS_ON = ("sm_80", "sm_90")
HEAD_DIMS = (16, 32, 48, 64, 80, 128, 144, 256)
BACKEND = "triton"


def launch_everything() -> None:
    """Call every operation so that its launcher takes each of its branches once."""
    for dtype in FLOATS:
        for top_k in (5, 32):
            launch_confidence(dtype, top_k)
            launch_lm_head(dtype, top_k)
        for head_dim in HEAD_DIMS:
            launch_attention(dtype, head_dim)
    launch_advance()


def launch_confidence(dtype: torch.dtype, top_k: int) -> None:
    """Rows that begin at a multiple of 16 bytes and others, ids of both types."""
    keys = torch.zeros(2, dtype=torch.int64)
    for vocab_size in (8192, 8191):
        logits = torch.empty(2, vocab_size, dtype=dtype)
        mf.sample_confidence(logits, seeds=keys, positions=keys, top_k=top_k, backend=BACKEND)
        for ids in (keys, keys.int()):
            mf.topk_confidence(logits, ids, top_k=top_k, backend=BACKEND)


def launch_lm_head(dtype: torch.dtype, top_k: int) -> None:
    """Weights that the copy engine of sm_90 accepts and others; the records of a shard."""
    keys = torch.zeros(2, dtype=torch.int64)
    for size in (128, 127):
        hidden, weight = torch.empty(2, size, dtype=dtype), torch.empty(8192, size, dtype=dtype)
        options = {"top_k": top_k, "backend": BACKEND}
        mf.lm_head_confidence(hidden, weight, seeds=keys, positions=keys, **options)
        mf.lm_head_records(hidden, weight, 0, 8192, **options)


def launch_attention(dtype: torch.dtype, head_dim: int) -> None:
    """append_kv, and both stages for work items of 16 and of 32 query heads."""
    from marco_fast.kernels import tree_attention as kernels

    tree = prompt_and_branches(600, 8, 20)
    table, pages = tables(tree)
    k_cache, v_cache = torch.empty(2, pages, 2, PAGE, head_dim, dtype=dtype)
    k, v = torch.empty(2, 3, 2, head_dim, dtype=dtype)
    mf.append_kv(k, v, k_cache, v_cache, torch.zeros(3, dtype=torch.int64), backend=BACKEND)
    plan = mf.plan_tree_attention(
        tree.parents, tree.lens, table, tree.leaves, num_heads=14, num_kv_heads=2,
        head_dim=head_dim, page_size=PAGE,
    )  # fmt: skip
    q = torch.empty(8, 14, head_dim, dtype=dtype)
    options, result = (
        AttentionOptions(1.0, torch.empty(0)),
        AttentionResult(torch.empty_like(q), None),
    )
    heads = (14, 2, head_dim, PAGE)
    for tile in (16, 32):
        items = work_items(plan.arrays, heads=heads, device=q.device, tile_query_heads=tile)
        held: Any = SimpleNamespace(items=lambda device, items=items: items)
        kernels.tree_attention(AttentionInputs(q, k_cache, v_cache, held), options, result)


def launch_advance() -> None:
    from marco_fast.kernels import tree_attention as kernels

    lens = torch.zeros(8, dtype=torch.int32)
    for active in (None, torch.ones(8, dtype=torch.bool)):
        kernels.advance(lens, lens, active)


def all_specializations(arch: str, match: str = "") -> list[Specialization]:
    """The specialisations that were launched, of those whose label holds `match`."""
    with recording(arch) as seen:
        launch_everything()
    return [each for each in seen.specializations.values() if match in each.label]


def spills(row: dict) -> bool:
    """Whether a thread of this kernel uses local memory."""
    return bool(row.get("stack") or row.get("local"))


def report(arch: str, match: str) -> list[dict]:
    """Compiles and prints; one dict per specialisation."""
    rows = []
    for found in all_specializations(arch, match):
        row = {"kernel": found.label, "arch": arch} | resources(found)
        rows.append(row)
        if "error" in row:
            print(f"{arch:7} {found.label} {row['error']}", flush=True)
            continue
        print(
            f"{arch:7} {row['registers']:4} regs {row['shared']:7} B shared {row['stack']:4} stack "
            f"{row['local']:4} local {row['seconds']:6.2f} s  {found.label}",
            flush=True,
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.aot", description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--match", default="", help="only the kernels whose label holds this")
    parser.add_argument("--out", type=Path, help="where to write the table as JSON")
    args = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("expected TRITON_INTERPRET unset: the interpreter does not compile")
    rows = [row for arch in args.arch for row in report(arch, args.match)]
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
    bad = [row for row in rows if "error" in row or (spills(row) and row["arch"] in NO_SPILLS_ON)]
    for row in bad:
        print(f"failed: {row['arch']} {row['kernel']}", file=sys.stderr)
    return 1 if bad or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
