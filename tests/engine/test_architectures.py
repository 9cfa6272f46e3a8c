"""Every causal architecture that transformers knows: its scores are right, or it is refused.

`python -m tests.engine.test_architectures` writes what was found into docs/models.md.
"""

import functools
import re
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
import transformers

from tests.support.architecture_variants import VARIANTS
from tests.support.architectures import NAMES, WINDOW, Outcome, outcome

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
WALK = {name: (name, {}) for name in NAMES} | VARIANTS
TORCH = torch.__version__.partition("+")[0]
MADE_WITH = f"Made with transformers {transformers.__version__} and torch {TORCH}."
SOFTMAX = (
    "expected a model whose layers are all softmax attention over keys and values of their own"
)


@functools.cache
def found(name: str) -> Outcome:
    architecture, changes = WALK[name]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about such configurations
        return outcome(architecture, Path(folder), **changes)


@pytest.mark.parametrize("name", WALK)
def test_an_architecture_is_right_or_refused_in_one_line(name):
    kind, _, cause = found(name)
    assert kind in ("C++", "transformers", "refused", "not built"), cause
    assert "\n" not in cause
    assert kind != "refused" or cause.startswith("expected ")


@pytest.mark.parametrize(
    ("name", "kind", "window"),
    [
        ("llama", "C++", None),
        ("qwen2", "C++", None),
        ("qwen3", "C++", None),
        ("mistral", "C++", WINDOW),
        ("gpt2", "transformers", None),
        ("gpt_bigcode", "transformers", None),  # one KV head, which no field counts
        ("jetmoe", "transformers", None),  # repeats its KV heads before attention
        ("stablelm", "transformers", None),  # hands no options down to attention
        ("nemotron", "transformers", None),
        ("olmo2", "transformers", None),
        ("gemma3_text", "transformers", WINDOW),
        ("llama4_text", "transformers", WINDOW),  # chunks
        ("gemma2, no soft cap", "transformers", WINDOW),
        ("deepseek_v3, equal sizes", "transformers", None),
        ("bert, decoder", "transformers", None),
        ("granitemoehybrid, attention alone", "transformers", None),
    ],
)
def test_what_can_be_run_is_run(name, kind, window):
    assert found(name) == Outcome(kind, window)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("qwen3_next", "'qwen3_next', whose layer_types name 'linear_attention'"),
        ("falcon_h1", "'falcon_h1', whose layer_types name 'hybrid'"),
        ("lfm2, convolutions", "'lfm2', whose layer_types name 'conv'"),
        ("mamba2", "'mamba2', which has no attention at all"),
        ("rwkv", "'rwkv', which has no attention at all"),
        ("recurrent_gemma", "'recurrent_gemma', whose layer"),  # versions name it differently
        ("gptj", "'gptj', which does not use transformers' AttentionInterface"),
        ("falcon", "'falcon', which does not use transformers' AttentionInterface"),
        ("falcon, ALiBi", "'falcon', which adds a bias to the logits of its attention (ALiBi)"),
        ("bloom", "'bloom', which adds a bias to the logits of its attention (ALiBi)"),
        ("mpt", "'mpt', which adds a bias to the logits of its attention (ALiBi)"),
        ("gemma2", "'gemma2', which caps the logits of its attention (attn_logit_softcapping is"),
        ("gpt_oss", "'gpt_oss', whose attention has sinks"),
        ("deepseek_v3", "'deepseek_v3', whose keys have 192 elements and its values 128"),
        ("gemma4_text", "'gemma4_text', whose layers differ from each other (per_layer_config)"),
        ("gemma3n_text", "'gemma3n_text', of which 15 layers use keys and values of another"),
        ("laguna, heads by layer", "'laguna', whose layers have different heads"),
        ("diffllama", "'diffllama', whose layer 0 attends more than once a token"),
        ("bert", "'bert', an encoder, which reads in both directions (is_decoder is false)"),
        ("gemma3_text, both directions", "'gemma3_text', which reads in both directions"),
    ],
)
def test_other_layers_than_softmax_attention_are_named(name, cause):
    assert found(name).cause.startswith(f"{SOFTMAX}, got {cause}")


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("gemma3", "expected a model of text alone, got the multimodal or composite 'gemma3'"),
        ("bart", "expected a decoder-only model, got 'bart'"),
        (
            "doge",
            "expected plain causal attention, got a mask that the model makes itself ('doge')",
        ),
        ("bert-generation", "expected plain causal attention, got 'is_causal' (False) of the mod"),
        (
            "roberta, decoder",
            "expected the logprobs of 'roberta' as transformers computes them, got others by up",
        ),
        ("llama, heads of 24", "expected a head size of 16 to 256 in steps of 16, got 24"),
        ("quantised", "expected weights in float32, bfloat16 or float16, got quantised weights"),
    ],
)
def test_other_causes_are_named(name, cause):
    assert found(name).cause.startswith(cause)


def table() -> str:
    """What the walk finds, as docs/models.md shows it."""
    right: dict[tuple[str, bool], list[str]] = {}
    causes: dict[str, list[str]] = {}
    for name in sorted(WALK):
        kind, window, cause = found(name)
        if kind in ("C++", "transformers"):
            right.setdefault((kind, window is not None), []).append(name)
        else:
            got = cause.removeprefix(f"{SOFTMAX}, got ")
            known = repr(WALK[name][0])
            got = got.removeprefix(f"{known}, ").replace(known, "…")
            got = re.sub(r" by up to [^:]*", "", got)  # as large as the CPU's rounding makes it
            causes.setdefault(got if kind == "refused" else f"(not built: {got})", []).append(name)
    lines = [MADE_WITH, ""]
    for (kind, windowed), title in TITLES.items():
        names = right.get((kind, windowed), [])
        lines += [f"## {title}", "", "; ".join(names) + ".", ""]
    lines += ["## Refused", "", "| why | architectures |", "|---|---|"]
    lines += [f"| {cause} | {'; '.join(names)} |" for cause, names in sorted(causes.items())]
    return "\n".join(lines) + "\n"


TITLES = {
    ("C++", False): "Right, in C++ on a CPU",
    ("C++", True): "Right, in C++ on a CPU, as far as the window reaches",
    ("transformers", False): "Right, through transformers",
    ("transformers", True): "Right, through transformers, as far as a window or plain RoPE reaches",
}


@pytest.mark.skipif(MADE_WITH not in PAGE.read_text(), reason="made with other versions")
def test_the_page_of_models_is_what_is_found():
    assert MADE_WITH + PAGE.read_text().partition(MADE_WITH)[2] == table()


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(PAGE.read_text().partition("Made with ")[0] + table())
