"""Weights: loading names what is missing, foreign, of another shape or in another place."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from marco_fast import Engine, ModelError, SearchConfig, solve
from marco_fast.engine.loading import weights
from tests.support.models import PlainForward, save_model

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {kind: save_model(kind, tmp_path_factory.mktemp(kind)) for kind in ("qwen2", "llama3")}
    sharded = shutil.copytree(made["qwen2"], tmp_path_factory.mktemp("shards") / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(made["qwen2"])
    (sharded / FILE).unlink()
    model.save_pretrained(sharded, max_shard_size="200KB")
    return made | {"shards": sharded}


@pytest.fixture
def copy(folders, tmp_path):
    return lambda kind="qwen2": shutil.copytree(folders[kind], tmp_path / "model")


def edit_tensors(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_json(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        Engine.from_pretrained(folder, kv_tokens=64)
    assert str(caught.value).startswith("expected")
    assert "\n" not in str(caught.value)


NORM, EMBEDDING, HEAD = "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"
Q = "model.layers.1.self_attn.q_proj."


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        ([NORM], "got none for 'model.norm.weight'"),
        ([EMBEDDING], "got none for 'model.embed_tokens.weight'"),
        ([HEAD], "got none for 'lm_head.weight'"),
        ([Q + "bias"], "got none for 'model.layers.1.self_attn.q_proj.bias'"),
        ("layers.1.", "got none for 'model.layers.1.[a-z_.]*', '.*', '.*' and 9 more"),
        ("", "expected (all weights|a loadable model)"),
    ],
)
def test_missing_tensors_are_named(copy, lost, says):
    folder = copy()

    def drop(tensors):
        for name in [n for n in tensors if (lost in n if isinstance(lost, str) else n in lost)]:
            del tensors[name]

    edit_tensors(folder / FILE, drop)
    refused(folder, says)


def test_tied_tensors_are_not_missing(copy):
    folder = copy("llama3")
    assert HEAD not in load_file(folder / FILE)
    Engine.from_pretrained(folder, kv_tokens=64).close()
    edit_tensors(folder / FILE, lambda tensors: tensors.pop(EMBEDDING))
    refused(folder, "got none for '(lm_head|model.embed_tokens).weight'")


@pytest.mark.parametrize("kind", ["qwen2", "llama3"])
@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight",
        "model.layers.2.self_attn.q_proj.weight",
        "model.layers.0.self_attn.o_proj.bias",
        "model.layers.0.self_attn.q_proj.weight_scale",
        "model.layers.0.self_attn.sinks",
        "model.layers.0.self_attn.bias",
        "lm_head.bias",
        "score.weight",
        "visual.patch_embed.weight",
        "model.embed_positions.weight",
    ],
)
def test_tensors_that_would_not_be_run_are_named(copy, kind, name):
    folder = copy(kind)
    edit_tensors(folder / FILE, lambda tensors: tensors.update({name: torch.zeros(3)}))
    refused(folder, f"got '{name}', which would not be run")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", torch.zeros(8)),
        ("model.rotary_emb.inv_freq", torch.zeros(8)),
        ("model.layers.0.self_attn.rotary_emb.cos_cached", torch.zeros(8, 8)),
        ("model.position_ids", torch.arange(8)[None]),
        ("model.layers.0.attn.masked_bias", torch.tensor(-1e4)),
        ("model.layers.0.attn.bias", torch.ones(1, 1, 8, 8, dtype=torch.bool)),
    ],
)
def test_tables_that_older_versions_saved_are_left_over(copy, name, tensor):
    folder = copy()
    edit_tensors(folder / FILE, lambda tensors: tensors.update({name: tensor}))
    Engine.from_pretrained(folder, kv_tokens=64).close()


def test_another_shape_is_named_with_both(copy):
    folder = copy()
    name = Q + "weight"
    edit_tensors(folder / FILE, lambda t: t.update({name: t[name][:-1].contiguous()}))
    refused(folder, r"got \(111, 112\) instead of \(112, 112\) in 'model.layers.1.self_attn.q_proj")


def test_more_layers_than_the_model_has_are_named(copy):
    folder = copy()
    edit_json(folder / "config.json", num_hidden_layers=1, layer_types=["full_attention"])
    refused(folder, "got 'model.layers.1.*', .* and 9 more, which would not be run")


@pytest.mark.parametrize(
    ("dtype", "called"),
    [
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.int32, "I32"),
        (torch.bool, "BOOL"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
    ],
)
@pytest.mark.parametrize("kind", ["qwen2", "shards"])
def test_weights_that_are_no_numbers_by_themselves_are_refused(copy, kind, dtype, called):
    folder, name = copy(kind), Q + "weight"
    files = [path for path in folder.glob("*.safetensors") if name in load_file(path)]
    edit_tensors(files[0], lambda t: t.update({name: t[name].to(dtype)}))
    refused(folder, f"got {called} in 'model.layers.1.self_attn.q_proj.weight'")


def test_a_quantised_model_is_named_as_one(copy):
    folder = copy()
    edit_tensors(folder / FILE, lambda t: t.update({Q + "weight": t[Q + "weight"].to(torch.int8)}))
    edit_json(folder / "config.json", quantization_config={"quant_method": "fp8"})
    refused(folder, "quantised weights")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_the_weights_is_refused(copy, name):
    folder = copy()
    (folder / name).write_text("{}")
    refused(folder, f"got an adapter beside it .{name}., which would not be run")


def test_shards_make_the_model_that_one_file_makes(copy, folders):
    config = SearchConfig(expansions=2, step_tokens=8, rollout_tokens=0)
    assert len([*folders["shards"].glob("*.safetensors")]) > 2
    with Engine.from_pretrained(folders["shards"]) as engine:
        result = solve("why not", engine, config)
    assert PlainForward(folders["qwen2"]).check(result, 2e-4) > 0


def test_files_that_are_links_are_read(folders, tmp_path):
    """A hub's cache is a folder of links to files elsewhere."""
    for kind in ("qwen2", "shards"):
        (tmp_path / kind).mkdir()
        for path in folders[kind].iterdir():
            (tmp_path / kind / path.name).symlink_to(path)
        Engine.from_pretrained(tmp_path / kind, kv_tokens=64).close()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "null", '{"weight_map": []}', '{"weight_map": {}}', "\xff",
     '{"weight_map": ' + "[" * 100_000, '{"weight_map": {"a": 1}}',
     '{"weight_map": {"a": "x.bin"}}'],
)  # fmt: skip
def test_an_index_that_is_none_is_refused(copy, text):
    folder = copy("shards")
    (folder / INDEX).write_bytes(text.encode("latin-1"))
    refused(folder, "expected (readable JSON|a weight_map|the tensors) (in|of) .*index.json")


@pytest.mark.parametrize(
    "place", ["../{}", "/{}", "a/../../{}", "..\\{}", "C:\\{}", "{}/..", "./../{}"]
)
def test_an_index_names_files_of_its_folder_alone(copy, place):
    folder = copy("shards")
    files = json.loads((folder / INDEX).read_text())["weight_map"]
    name, file = next(iter(files.items()))
    shutil.copy(folder / file, folder.parent / "outside.safetensors")
    edit_json(folder / INDEX, weight_map=files | {name: place.format("outside.safetensors")})
    refused(folder, f"in safetensors files of its folder, got .* for '{name}'")


def test_shards_that_do_not_fit_their_index_are_refused(copy):
    folder = copy("shards")
    files = json.loads((folder / INDEX).read_text())["weight_map"]
    first, last = sorted({*files.values()})[:: len({*files.values()}) - 1]
    moved = next(name for name, file in files.items() if file == first)
    edit_json(folder / INDEX, weight_map=files | {moved: last})
    refused(folder, f"got none of '{moved}' .{last}.")
    edit_json(folder / INDEX, weight_map=files)
    edit_tensors(folder / last, lambda tensors: tensors.update({moved: torch.zeros(3)}))
    refused(folder, f"expected every tensor in one file, got two with '{moved}'")
    (folder / last).unlink()
    refused(folder, f"expected a loadable model, got in .*{last}")


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 100_000])
def test_a_shard_that_is_cut_off_is_named(copy, keep):
    folder = copy("shards")
    shard = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:keep])
    refused(folder, f"expected a loadable model, got in .*{shard.name}")


def test_a_tensor_that_was_never_filled_is_refused():
    with torch.device("meta"):
        model = torch.nn.Linear(2, 2)
    report = {"error_msgs": [], "missing_keys": [], "mismatched_keys": [], "unexpected_keys": []}
    with pytest.raises(ModelError, match="to be read, got none for 'weight', 'bias'"):
        weights.check_loaded(model, report)
    with pytest.raises(ModelError, match="expected loadable weights, got: no"):
        weights.check_loaded(model, report | {"error_msgs": ["no"]})
