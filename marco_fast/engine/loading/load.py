"""A model and its tokenizer from a folder or a hub; a ModelError names what is wrong."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
import transformers

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from marco_fast.engine.loading.architectures import check_architecture
from marco_fast.engine.loading.tokenizer import load_tokenizer
from marco_fast.engine.loading.weights import check_loaded, check_weight_files
from marco_fast.engine.native_runner import KNOWN
from marco_fast.errors import ModelError
from marco_fast.text import check_unicode

__all__ = ["BUNDLED", "cpu_dtype", "load_model"]

BUNDLED = ("nano-marco", "nano-llama")
GGUF = (
    "transformers converts a GGUF file: AutoModelForCausalLM.from_pretrained(folder, "
    "gguf_file=name, quantization_config=GgufConfig(dequantize=True)).save_pretrained(new_folder)"
)
SMALL = 1 << 26  # parameters of a model that is computed in float32 on a CPU
LOG = logging.getLogger("marco_fast.loading")  # what is done, for a terminal
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
    target = _device(device)
    chosen = _dtype(dtype, target)
    source = str(path)
    check_unicode(source)
    if source in BUNDLED:
        source = str(Path(__file__).parents[2] / "models" / source)
    options: dict[str, Any] = {"trust_remote_code": False}
    part = "model"
    try:
        _check_source(source, options)
        config = transformers.AutoConfig.from_pretrained(source, **options)
        check_architecture(config)
        if Path(source).is_dir():
            check_weight_files(Path(source))
        if chosen == "auto" and target.type == "cpu":
            chosen = cpu_dtype(config)
        LOG.info("reading the weights")
        model = _model(source, config, chosen, options)
        part = "tokenizer"
        tokenizer = load_tokenizer(source, options)
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds; each names its cause
        unclear = isinstance(error, LookupError | TypeError | AttributeError) or not str(error)
        cause = " ".join((repr(error) if unclear else str(error)).split())[:400]
        raise ModelError(f"expected a loadable {part} {str(path)!r}, got: {cause}") from error
    return model.to(target), tokenizer


def _model(source: str, config: Any, dtype: torch.dtype | str, options: dict[str, Any]) -> Any:
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


def _device(device: str | torch.device | None) -> torch.device:
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


def _dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype | str:
    if dtype is None:
        return "auto"
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    chosen = known.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if chosen not in known.values():
        raise ValueError(f"expected dtype to be one of {[*known]}, got {dtype!r}")
    return chosen


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


def _check_source(source: str, options: dict[str, Any]) -> None:
    """A folder must hold a config and safetensors; anything else is left to the hub."""
    folder = Path(source)
    if source.lower().endswith(".gguf") and folder.is_file():
        raise ModelError(f"expected a folder with safetensors weights, got {source!r}; {GGUF}")
    if not source or not folder.is_dir():
        if folder.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
            known = ", ".join(BUNDLED)
            raise ModelError(f"expected {known}, a model folder or a hub id, got {source!r}")
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
        if [*folder.glob("*.gguf")]:
            got = f"a GGUF file; {GGUF}"
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
