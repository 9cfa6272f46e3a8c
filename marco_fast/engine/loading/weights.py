"""A model's weights: all there, of the right shape, and none that would not be run."""

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from marco_fast.errors import ModelError

__all__ = ["check_loaded", "check_model", "check_weight_files", "stored_dtypes"]

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
# What older versions of transformers saved beside the weights: tables that a model computes itself,
# of RoPE, of positions, and the causal mask of GPT's relatives.
TABLES = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|position_ids"
    r"|(attn|attention)\.(masked_)?bias)$"
)
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
SHOWN = 3  # tensors that a message names


def check_weight_files(folder: Path) -> None:
    """Looks at what the files say of themselves, before a weight is read.

    Raises:
        ModelError: an index that is no index, or names a file that is not in the folder or does not
            hold what it should; a file that is cut off; weights that are no floating-point numbers;
            an adapter, which would not be run.
    """
    adapters = [name for name in ADAPTERS if (folder / name).exists()]
    if adapters:
        raise ModelError(
            f"expected a whole model in {str(folder)!r}, got an adapter beside it ({adapters[0]}), "
            "which would not be run: merge it into the weights"
        )
    if (folder / WHOLE).exists():
        _check_numbers(_dtypes(folder / WHOLE))
    elif (folder / INDEX).exists():
        _check_shards(folder, _weight_map(folder / INDEX))


def stored_dtypes(folder: Path) -> tuple[list[str], int]:
    """The number format of each tensor in a folder's files, and the bytes of these files.

    Both are empty where there is no such folder.
    """
    files = [folder / WHOLE] if (folder / WHOLE).exists() else []
    if not files and (folder / INDEX).exists():
        files = [folder / name for name in sorted({*_weight_map(folder / INDEX).values()})]
    stored = [dtype for file in files for dtype in _dtypes(file).values()]
    return stored, sum(each.stat().st_size for each in files)


def _weight_map(path: Path) -> dict[str, str]:
    """Which file each tensor is in."""
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"expected readable JSON in {str(path)!r}, got: {error}") from error
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files:
        raise ModelError(f"expected a weight_map in {str(path)!r}, got {files!r}")
    for name, file in files.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or _is_outside(file):
            raise ModelError(
                f"expected the tensors of {str(path)!r} in safetensors files of its folder, got "
                f"{file!r} for {name!r}"
            )
    return files


def _is_outside(file: str) -> bool:
    place = PurePosixPath(file.replace("\\", "/"))
    return place.is_absolute() or ".." in place.parts or ":" in file


def _check_shards(folder: Path, files: dict[str, str]) -> None:
    dtypes = {file: _dtypes(folder / file) for file in sorted({*files.values()})}
    lost = [name for name, file in files.items() if name not in dtypes[file]]
    if lost:
        raise ModelError(
            f"expected every tensor of {INDEX} in its file, got none of {_names(lost)} "
            f"({files[lost[0]]})"
        )
    twice = [n for file, held in dtypes.items() for n in held if files.get(n, file) != file]
    if twice:
        raise ModelError(f"expected every tensor in one file, got two with {_names(twice)}")
    _check_numbers({name: dtype for held in dtypes.values() for name, dtype in held.items()})


def _dtypes(path: Path) -> dict[str, str]:
    """The dtype of every tensor in a safetensors file, as its header names it."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_slice(name).get_dtype() for name in names}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"expected a loadable model, got in {str(path)!r}: {error}") from error


def _check_numbers(dtypes: dict[str, str]) -> None:
    others = [n for n, dtype in dtypes.items() if dtype not in FLOATS and not TABLES.search(n)]
    if others:
        raise ModelError(
            f"expected weights in {', '.join(FLOATS)}, got {dtypes[others[0]]} in "
            f"{_names(others)}, and no quantization_config that says what it means"
        )


def check_loaded(model: Any, report: dict[str, Any]) -> None:
    """Refuses a model that was not made of its files' weights, all of them and nothing else.

    Args:
        model: as transformers loaded it, which fills what is missing with random numbers.
        report: what transformers says of it (`output_loading_info`). What it knows to be left over
            is not in it, nor are tensors that are tied to others.

    Raises:
        ModelError: tensors are missing, of another shape, or of no use; their names.
    """
    if report["error_msgs"]:
        raise ModelError(f"expected loadable weights, got: {report['error_msgs'][0]}")
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"expected all weights of the model, got none for {_names(missing)}")
    shapes = sorted(report["mismatched_keys"])
    if shapes:
        _, got, wanted = shapes[0]
        raise ModelError(
            f"expected weights of the model's shapes, got {tuple(got)} instead of {tuple(wanted)} "
            f"in {_names([each[0] for each in shapes])}"
        )
    foreign = sorted(name for name in report["unexpected_keys"] if not TABLES.search(name))
    if foreign:
        raise ModelError(
            f"expected weights of a {type(model).__name__} alone, got {_names(foreign)}, which "
            "would not be run"
        )
    _check_memory(model)


def check_model(model: Any) -> None:
    """Refuses what is no model, or whose tensors are not all in one device's memory.

    Raises:
        ModelError: the kind of object, or the names of tensors that were never read, or that are
            on another device.
    """
    generates = getattr(model, "can_generate", bool)
    if not isinstance(model, torch.nn.Module) or not generates():
        got = type(model).__name__
        raise ModelError(f"expected a causal language model of transformers, got {got}")
    _check_memory(model)


def _check_memory(model: Any) -> None:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    unread = [name for name, tensor in tensors if tensor.is_meta]
    if unread:
        raise ModelError(f"expected all weights to be read, got none for {_names(unread)}")
    apart = [name for name, tensor in tensors if tensor.device != model.device]
    if apart:
        raise ModelError(
            f"expected all weights on {model.device}, that of the model's first, got others for "
            f"{_names(apart)}"
        )


def _names(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(map(repr, every[:SHOWN])) + more
