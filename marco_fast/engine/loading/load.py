"""A model and its tokenizer from a folder or a hub; a ModelError names what is wrong."""

import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from marco_fast.engine.loading.architectures import check_architecture
from marco_fast.errors import ModelError

__all__ = ["BUNDLED", "eos_ids_of", "load_model"]

BUNDLED = ("nano-marco", "nano-llama")
GGUF = (
    "transformers converts a GGUF file: AutoModelForCausalLM.from_pretrained(folder, "
    "gguf_file=name, quantization_config=GgufConfig(dequantize=True)).save_pretrained(new_folder)"
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
    if source in BUNDLED:
        source = str(Path(__file__).parents[2] / "models" / source)
    options: dict[str, Any] = {"trust_remote_code": False}
    _check_source(source, options)
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
        check_architecture(config)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=chosen, use_safetensors=True, **options
        )
        tokenizer = _tokenizer(source, options)
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds; each names its cause
        cause = (str(error).strip() or repr(error)).splitlines()[0]
        raise ModelError(f"expected a loadable model {str(path)!r}, got: {cause}") from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(f"expected a tokenizer.json in {str(path)!r}, got a slow tokenizer")
    return model.to(target), tokenizer  # type: ignore[arg-type]


def _tokenizer(source: str, options: dict[str, Any]) -> Any:
    """The tokenizer as its tokenizer.json defines it, if its configuration names no special class.

    AutoTokenizer would take the class of the model's family (Qwen2Tokenizer for "qwen2"), which
    replaces the file's rule for cutting text into words by its own.
    """
    named = get_tokenizer_config(source, **options).get("tokenizer_class")
    if named in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return transformers.PreTrainedTokenizerFast.from_pretrained(source, **options)
    return transformers.AutoTokenizer.from_pretrained(source, **options)


def _device(device: str | torch.device | None) -> torch.device:
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
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
        return torch.float32 if device.type == "cpu" else "auto"
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    chosen = known.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if chosen not in known.values():
        raise ValueError(f"expected dtype to be one of {[*known]}, got {dtype!r}")
    return chosen


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
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"expected a config.json in {source!r}, got none")
    try:  # not files.read_json: configurations may hold Infinity
        fields = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"expected readable JSON in {str(config)!r}, got: {error}") from error
    if not isinstance(fields, dict):
        raise ModelError(f"expected a JSON object in {str(config)!r}, got {type(fields).__name__}")
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


def eos_ids_of(model: Any, tokenizer: Any) -> frozenset[int]:
    found = {tokenizer.eos_token_id}
    for config in (model.generation_config, model.config):
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, list) else [ids])
    return frozenset(each for each in found if each is not None)
