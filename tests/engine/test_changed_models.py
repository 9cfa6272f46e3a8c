"""Models that a caller has changed: what C++ does not compute, transformers runs, and rightly."""

import copy

import pytest
import torch
import transformers
from torch import nn

import marco_fast as mf
from marco_fast.engine.loading.as_built import is_as_built
from marco_fast.engine.native_runner import NativeRunner
from tests.support.models import PlainForward, save_model

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = mf.SearchConfig(expansions=2, step_tokens=6, rollout_tokens=0, parallel=2, seed=1)


class Adapted(nn.Module):
    """A layer with a correction of low rank beside it, as LoRA has."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, rows = base, torch.Generator().manual_seed(3)
        self.down = nn.Parameter(torch.randn(2, base.in_features, generator=rows))
        self.up = nn.Parameter(torch.randn(base.out_features, 2, generator=rows))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


class Doubled(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def double_output(module, inputs, output):
    return 2 * output


def patch_forward(module):
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)


def transpose(linear):
    linear.weight = nn.Parameter(linear.weight.detach().T.contiguous().T)


def bias(linear):
    linear.bias = nn.Parameter(torch.ones(linear.out_features))


CHANGES = {
    "a hook of a block": lambda m, b: b.mlp.register_forward_hook(double_output),
    "a hook of a layer": lambda m, b: b.mlp.down_proj.register_forward_hook(double_output),
    "a hook of the head": lambda m, b: m.lm_head.register_forward_hook(double_output),
    "a hook of the embedding": lambda m, b: m.model.embed_tokens.register_forward_hook(
        double_output
    ),
    "a hook before a layer": lambda m, b: b.mlp.register_forward_pre_hook(lambda _, x: x[0] / 2),
    "a function of its own": lambda m, b: patch_forward(b.mlp),
    "a head with a function of its own": lambda m, b: patch_forward(m.lm_head),
    "a wrapped layer": lambda m, b: setattr(b.self_attn, "q_proj", Adapted(b.self_attn.q_proj)),
    "a wrapped head": lambda m, b: setattr(m, "lm_head", Adapted(m.lm_head)),
    "a layer of a subclass": lambda m, b: setattr(b.mlp.up_proj, "__class__", Doubled),
    "a head of a subclass": lambda m, b: setattr(m.lm_head, "__class__", Doubled),
    "another activation": lambda m, b: setattr(b.mlp, "act_fn", nn.GELU()),
    "another norm": lambda m, b: setattr(b, "input_layernorm", nn.LayerNorm(112)),
    "another epsilon": lambda m, b: setattr(b.input_layernorm, "variance_epsilon", 0.5),
    "another scale": lambda m, b: setattr(b.self_attn, "scaling", 0.05),
    "an embedding of limited norms": lambda m, b: setattr(m.model.embed_tokens, "max_norm", 0.5),
    "a bias that is left out": lambda m, b: setattr(b.self_attn.k_proj, "bias", None),
    "a bias of one half": lambda m, b: bias(b.mlp.gate_proj),
    "a shared block": lambda m, b: setattr(b, "mlp", m.model.layers[0].mlp),
    "one layer more": lambda m, b: m.model.layers.append(copy.deepcopy(m.model.layers[0])),
    "one layer less": lambda m, b: m.model.layers.pop(1),
    "weights that lie otherwise": lambda m, b: (transpose(m.lm_head), transpose(b.mlp.up_proj)),
    "normed weights": lambda m, b: nn.utils.parametrizations.weight_norm(b.mlp.up_proj),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model("qwen2", tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def load(folder, change=lambda model, block: None, **options):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, **{"dtype": torch.float32, **options}
    )
    change(model, model.model.layers[1])
    return model


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_scored_as_it_is(folder, tokenizer, change, check):
    with mf.Engine(load(folder, CHANGES[change]), tokenizer, check=check) as engine:
        assert not isinstance(engine.runner, NativeRunner)
        result = mf.solve("abc", engine, CONFIG)
    assert PlainForward(load(folder, CHANGES[change])).check(result, atol=1e-4) > 0


@pytest.mark.parametrize("kind", ["qwen2", "llama3", "qwen3", "mistral"])
def test_a_model_as_it_was_loaded_is_decoded_in_cpp(kind, tmp_path):
    model = load(save_model(kind, tmp_path))
    assert is_as_built(model)
    assert is_as_built(model.train().bfloat16())


@pytest.mark.parametrize("part", ["model.layers.1.self_attn", "model.layers.1.mlp", "lm_head"])
@pytest.mark.parametrize("check", [True, False])
def test_weights_that_were_never_read_are_named(folder, tokenizer, part, check):
    model = load(folder, lambda m, b: m.get_submodule(part).to("meta"))
    with pytest.raises(mf.ModelError, match=f"^expected all weights to be read, got .*{part}"):
        mf.Engine(model, tokenizer, check=check)


def test_keys_that_are_no_numbers_are_named(folder, tokenizer):
    model = load(folder, lambda m, b: nn.init.constant_(b.self_attn.k_proj.bias, torch.nan))
    with pytest.raises(mf.ModelError, match=r"^expected finite logits, got NaN"):
        mf.Engine(model, tokenizer)


def test_a_model_to_which_all_tokens_are_alike_is_run(folder, tokenizer):
    model = load(folder, lambda m, b: nn.init.zeros_(m.lm_head.weight))
    with mf.Engine(model, tokenizer) as engine:
        assert mf.solve("abc", engine, CONFIG).error is None


@pytest.mark.parametrize("size", [0, -1, 16.0, "16", True, None])
@pytest.mark.parametrize("tokens", [None, 64])
def test_pages_of_no_size_are_refused(folder, tokenizer, size, tokens):
    with pytest.raises(ValueError, match=r"^expected page_size of at least 1, got"):
        mf.Engine(load(folder), tokenizer, page_size=size, kv_tokens=tokens)


@pytest.mark.parametrize(
    "make", [lambda m: None, str, lambda m: m.model, nn.DataParallel, lambda m: nn.Linear(2, 2)]
)
def test_what_is_no_causal_language_model_is_named(folder, tokenizer, make):
    with pytest.raises(mf.ModelError, match=r"^expected a causal language model of transformers"):
        mf.Engine(make(load(folder)), tokenizer)


@pytest.mark.parametrize("part", [None, "x", object(), "backend_tokenizer"])
def test_what_is_no_tokenizer_is_named(folder, tokenizer, part):
    other = getattr(tokenizer, part) if part == "backend_tokenizer" else part
    with pytest.raises(mf.ModelError, match=r"^expected a tokenizer with a tokenizer.json"):
        mf.Engine(load(folder), other)


def test_a_model_with_fewer_embeddings_than_its_tokenizer_is_refused(folder, tokenizer):
    model = load(folder, lambda m, b: m.resize_token_embeddings(100))
    with pytest.raises(mf.ModelError, match=r"^expected a tokenizer with ids below 100"):
        mf.Engine(model, tokenizer)
