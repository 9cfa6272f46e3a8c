"""A model and its tokenizer from a folder or a hub; a ModelError names what is wrong."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from marco_fast.engine.gguf.header import is_gguf
from marco_fast.engine.gguf.model import gguf_files, load_gguf
from marco_fast.engine.loading.architectures import check_architecture
from marco_fast.engine.loading.quantize import quantize_model
from marco_fast.engine.loading.tokenizer import load_tokenizer
from marco_fast.engine.loading.weights import check_loaded, check_weight_files
from marco_fast.engine.native_runner import KNOWN
from marco_fast.engine.quantized import quantizes
from marco_fast.errors import ModelError
from marco_fast.text import check_unicode

__all__ = [
    "BUNDLED", "bundled", "cpu_dtype", "described", "device_of", "dtype_of", "gguf_dtype",
    "gguf_file", "load_model", "named",
]  # fmt: skip

BUNDLED = ("nano-marco", "nano-llama")
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL = 1 << 26  # parameters of a model that is computed in float32 on a CPU
LOG = logging.getLogger("marco_fast.loading")  # what is done, for a terminal
QUANTIZED = {"int8": 8, "int4": 4}
JSON_FILES = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
)


def load_model(
    path: str | os.PathLike[str],
    device: str | torch.device | None,
    dtype: torch.dtype | str | None,
) -> tuple[Any, Any]:
    """The transformers model, on its device, and its tokenizer; as Engine.from_pretrained says."""
    target = device_of(device)
    chosen, bits = dtype_of(dtype, target)
    source = bundled(path)
    if (file := gguf_file(source)) is not None:
        chosen = gguf_dtype(file, dtype, target)
        LOG.info("reading the weights")
        return named(file, "GGUF file", lambda: load_gguf(file, target, chosen))
    options: dict[str, Any] = {"trust_remote_code": False}
    model = named(path, "model", lambda: _checked_model(source, chosen, target, options))
    tokenizer = named(path, "tokenizer", lambda: load_tokenizer(source, options))
    if bits:
        LOG.info("quantising the weights")
        named(path, "model", lambda: quantize_model(model, bits))
    return model.to(target), tokenizer


def named(path: str | os.PathLike[str], part: str, load: Callable[[], Any]) -> Any:
    """What `load` gives; whatever it raises becomes a ModelError that names the part.

    Raises:
        ModelError: the path, and the cause.
    """
    try:
        return load()
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds; each names its cause
        unclear = isinstance(error, LookupError | TypeError | AttributeError) or not str(error)
        cause = " ".join((repr(error) if unclear else str(error)).split())[:400]
        raise ModelError(f"expected a loadable {part} {str(path)!r}, got: {cause}") from error


def bundled(path: str | os.PathLike[str]) -> str:
    """The folder of a bundled model; any other path as it is.

    Raises:
        ValueError: it is not Unicode.
    """
    source = str(path)
    check_unicode(source)
    return str(Path(__file__).parents[2] / "models" / source) if source in BUNDLED else source


def described(source: str, options: dict[str, Any]) -> Any:
    """The configuration of a model that can be run, as far as its files tell."""
    _check_source(source, options)
    config = transformers.AutoConfig.from_pretrained(source, **options)
    check_architecture(config)
    if Path(source).is_dir():
        check_weight_files(Path(source))
    return config


def cpu_dtype(config: Any) -> torch.dtype:
    """What a model is computed in on a CPU, if nobody says otherwise.

    bfloat16 where the checkpoint is and C++ runs the model: half the memory and up to twice the
    speed. Else float32: in 16 bits PyTorch alone is slow, and where a model is small float32 costs
    nothing.
    """
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if config.dtype != torch.bfloat16 or name not in KNOWN:
        return torch.float32
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    small = sum(each.numel() for each in model.parameters()) < SMALL
    return torch.float32 if small else torch.bfloat16


def _checked_model(
    source: str, dtype: torch.dtype | str, device: torch.device, options: dict[str, Any]
) -> Any:
    config = described(source, options)
    if dtype == "auto" and device.type == "cpu":
        dtype = cpu_dtype(config)
    LOG.info("reading the weights")
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # the report names them
        **options,
    )
    model, report = loaded
    check_loaded(model, report)
    return model


def gguf_file(source: str) -> Path | None:
    """The GGUF file that a path means: itself, or the only one of a folder without a config.json.

    Raises:
        ModelError: the folder has several.
    """
    path = Path(source)
    try:
        if is_gguf(path):
            return path
    except OSError:  # it cannot be a file's name, or be read: what loads it says so
        return path if path.suffix.lower() == ".gguf" and os.path.exists(path) else None
    if not source or not path.is_dir() or (path / "config.json").exists():
        return None
    found = gguf_files(path)
    if len(found) > 1:
        names = ", ".join(repr(each.name) for each in found[:4])
        raise ModelError(f"expected one model in {source!r}, got {len(found)} GGUF files: {names}")
    return found[0] if found else None


def device_of(device: str | torch.device | None) -> torch.device:
    try:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"expected device to be cpu or cuda, got {device!r}") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"expected device to be cpu or cuda, got {str(found)!r}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"expected a GPU of this machine, which has {torch.cuda.device_count()}, "
            f"got {str(found)!r}"
        )
    return found


def dtype_of(
    dtype: torch.dtype | str | None, device: torch.device
) -> tuple[torch.dtype | str, int]:
    """The dtype to load in, and to how many bits weights are then quantised; 0: they are not."""
    if isinstance(dtype, str) and dtype in QUANTIZED:
        if device.type != "cpu" or not quantizes():
            raise ValueError(
                f"expected dtype to be one of {[*FLOATS]} without the C++ extension or on "
                f"{device}, got {dtype!r}"
            )
        return "auto", QUANTIZED[dtype]
    if dtype is None:
        return "auto", 0
    chosen = FLOATS.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if chosen not in FLOATS.values():
        known = [*FLOATS, *QUANTIZED]
        raise ValueError(f"expected dtype to be one of {known}, got {dtype!r}")
    return chosen, 0


def gguf_dtype(
    file: Path, dtype: torch.dtype | str | None, device: torch.device
) -> torch.dtype | str:
    """The dtype of a GGUF file's activations.

    Raises:
        ValueError: it is one of weights, which stay what they are in the file.
    """
    chosen, bits = dtype_of(dtype, device)
    if bits:
        raise ValueError(
            f"expected dtype to be one of {[*FLOATS]} for the GGUF file {str(file)!r}, whose "
            f"weights stay what they are, got {dtype!r}"
        )
    return torch.float32 if chosen == "auto" and device.type == "cpu" else chosen


def _check_source(source: str, options: dict[str, Any]) -> None:
    """A folder must hold a config and safetensors; anything else is left to the hub."""
    folder = Path(source)
    if not source or not folder.is_dir():
        if folder.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
            known = ", ".join(BUNDLED)
            raise ModelError(
                f"expected {known}, a GGUF file, a model folder or a hub id, got {source!r}"
            )
        return
    options["local_files_only"] = True
    if not (folder / "config.json").is_file():
        raise ModelError(f"expected a config.json in {source!r}, got none")
    fields = _read_text_files(folder)
    if fields.get("auto_map"):
        raise ModelError(f"expected a model that transformers knows, got remote code in {source!r}")
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"expected a tokenizer.json in {source!r}, got none")
    if not [*folder.glob("*.safetensors")]:
        pickled = [each.name for kind in ("*.bin", "*.pt", "*.pth") for each in folder.glob(kind)]
        got = f"pickled weights ({pickled[0]}), which are never loaded" if pickled else "none"
        if files := gguf_files(folder):
            got = f"none; name its GGUF file {files[0].name!r}"
        raise ModelError(f"expected safetensors weights in {source!r}, got {got}")


def _read_text_files(folder: Path) -> dict[str, Any]:
    """The fields of config.json; all that transformers reads beside it must be readable, too.

    Some of it transformers would go without, in silence.
    """
    for name in ("chat_template.jinja", *JSON_FILES):
        path = folder / name
        if not path.exists():
            continue
        fields: Any = {}
        try:  # not files.read_json: configurations may hold Infinity
            text = path.read_text(encoding="utf-8")
            if name in JSON_FILES:
                fields = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            kind = "JSON" if name in JSON_FILES else "text"
            raise ModelError(f"expected readable {kind} in {str(path)!r}, got: {error}") from error
        if not isinstance(fields, dict):
            got = type(fields).__name__
            raise ModelError(f"expected a JSON object in {str(path)!r}, got {got}")
    return fields
