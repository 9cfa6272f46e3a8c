"""Files that are no GGUF, are cut off, or say of themselves what cannot be: one line each."""

import contextlib
import os
import random
import shutil
import struct

import gguf
import pytest
import torch

from marco_fast import Engine, ModelError
from marco_fast.engine.gguf.header import read_gguf
from marco_fast.engine.gguf.model import load_gguf


@pytest.fixture(scope="module")
def good(files):
    return files.write("good.gguf", "llama3", "Q4_0")[0]


@pytest.fixture(scope="module")
def header(good):
    """How many bytes stand before the weights."""
    return min(each.begin for each in read_gguf(good).tensors.values())


def refused(path, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        Engine.from_pretrained(path)
    assert str(caught.value).startswith("expected")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("begin", "match"),
    [
        (b"", r"expected a GGUF file '.*bad.gguf', got a file of 0 bytes"),
        (b"GGUF", "a file of 4 bytes"),
        (b"PK\x03\x04" * 10, "one that begins with b'PK.*' in place of b'GGUF'"),
        (b"GGUF" + struct.pack("<IQQ", 1, 1, 1), "of version 1, where 3 is read: convert"),
        (b"GGUF" + struct.pack("<IQQ", 2, 1, 1), "of version 2"),
        (b"GGUF" + struct.pack(">IQQ", 3, 1, 1), "of the other byte order"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1), "cut off, or of which a length is wrong"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1 << 60), "cut off, or of which a length is wrong"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "no general.architecture"),
    ],
)
def test_what_is_no_gguf_is_refused(tmp_path, begin, match):
    path = tmp_path / "bad.gguf"
    path.write_bytes(begin)
    refused(path, match)


def test_a_name_that_stands_for_no_file_is_refused(tmp_path):
    (tmp_path / "gone.gguf").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo.gguf")
    refused(tmp_path / "gone.gguf", "a GGUF file '.*gone.gguf', got no such file")
    refused(tmp_path / "fifo.gguf", "got what is no file")
    refused("models/missing.GGUF", "got no such file")  # which is no model of a hub, either
    refused(tmp_path / ("a" * 300), r"expected a readable model '.*', got: File name too long")


@pytest.mark.parametrize(("room", "match"), [(8, "no general.arch"), (7, "a length is wrong")])
def test_an_array_or_a_text_is_as_long_as_the_file_has_room_for(tmp_path, room, match):
    field = struct.pack("<Q", 1) + b"x" + struct.pack("<IIQ", 9, 0, 8) + bytes(room)
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + field)
    refused(path, match)
    text = struct.pack("<Q", 1) + b"x" + struct.pack("<IQ", 8, 8) + b"t" * room
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text)
    refused(path, match)


def test_arrays_within_arrays_end_somewhere(tmp_path):
    field = struct.pack("<Q", 1) + b"x" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + field)
    refused(path, "field 'x' is an array of the type 9")


def test_a_file_that_is_cut_off_anywhere_is_refused(good, header, tmp_path):
    data, path = good.read_bytes(), tmp_path / "bad.gguf"
    draw = random.Random(0)
    for size in draw.sample(range(24, header), 150) + draw.sample(range(header, len(data)), 50):
        path.write_bytes(data[:size])
        with pytest.raises(ModelError, match=r"cut off|UTF-8"):
            load_gguf(path, torch.device("cpu"), torch.float32)


def test_a_header_with_flipped_bytes_is_refused_or_loaded(good, header, tmp_path):
    data, path = good.read_bytes(), tmp_path / "bad.gguf"
    draw, loaded = random.Random(1), 0
    for _ in range(500):
        bad = bytearray(data)
        for _ in range(draw.choice([1, 1, 3])):
            at = draw.randrange(draw.choice([1200, header]))
            bad[at] = draw.choice([0, 255, draw.randrange(256), bad[at] ^ 1 << draw.randrange(8)])
        path.write_bytes(bad)
        with contextlib.suppress(ModelError):
            load_gguf(path, torch.device("cpu"), torch.float32)
            loaded += 1
    assert 0 < loaded < 250


def test_several_models_in_a_folder_are_refused_by_name(good, tmp_path):
    refused(tmp_path, "expected a config.json in")
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(good, tmp_path / name)
    refused(tmp_path, "expected one model in .*, got 2 GGUF files: 'a.gguf', 'b.gguf'")


def test_a_split_file_needs_all_its_parts_from_the_first(files, tmp_path):
    files.write("whole.gguf", "llama", "Q8_0", parts=tmp_path)
    first, second = sorted(tmp_path.iterdir())
    refused(second, "the first of 2 parts, named ...-00001-of-00002.gguf")
    second.rename(tmp_path / "elsewhere")
    refused(first, "all 2 parts of .*, got no 'whole-00002-of-00002.gguf'")
    first.rename(tmp_path / "renamed.gguf")
    refused(tmp_path / "renamed.gguf", "the first of 2 parts")


def tensor(name, shape=(256,), kind=gguf.GGMLQuantizationType.F32):
    """Adds a tensor of zeros."""

    def change(writer):
        size = gguf.quants.quant_shape_to_byte_shape(shape, kind)
        writer.add_tensor(name, bytes_of(size), raw_dtype=kind)

    return change


def bytes_of(shape):
    return torch.zeros(shape, dtype=torch.uint8).numpy()


def without(name):
    return lambda writer: writer.tensors[0].pop(name)


def reshaped(name, shape):
    def change(writer):
        writer.tensors[0][name].shape = shape

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without("blk.1.ffn_up.weight"), "all weights of the model .*none for 'blk.1.ffn_up.weig"),
        (without("token_embd.weight"), "a language model .*no tensor 'token_embd.weight'"),
        (reshaped("blk.1.ffn_up.weight", (128, 512)), r"of the shape \(256, 256\) .*\(128, 512\)"),
        (reshaped("blk.0.attn_q.weight", (128, 512)), r"of the shape \(256, 256\) .*\(128, 512\)"),
        (reshaped("blk.0.attn_q.weight", (2**40, 2**40)), "cut off"),
        (tensor("blk.0.attn_q_norm.weight", (64,)), "weights of a LlamaForCausalLM alone .*q_norm"),
        (tensor("blk.0.ffn_gate_inp.weight", (8, 256)), "alone .*'blk.0.ffn_gate_inp.weight'"),
        (tensor("blk.2.attn_norm.weight"), "tensors of 2 layers .llama.block_count.* got 3"),
        (tensor("x.weight", (2, 256), gguf.GGMLQuantizationType.Q2_K), "got Q2_K in 'x.weight'"),
        (tensor("x.weight", (2, 32), gguf.GGMLQuantizationType.MXFP4), "Q4_K_M.* or Q8_0 file"),
        (lambda w: w.add_type("mmproj"), "a language model .*a projector of images"),
        (lambda w: w.add_type("adapter"), "a language model .*got 'adapter'"),
        (lambda w: w.add_expert_count(8), "a plain llama model .*llama.expert_count of 8"),
        (lambda w: w.add_attention_scale(0.5), "llama.attention.scale of 0.5"),
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), "got 'longrope'"),
        (lambda w: w.add_uint32("general.alignment", 24), "general.alignment is 24"),
    ],
)
def test_a_model_that_is_not_whole_or_not_plain_is_refused(files, change, match):
    refused(files.write("bad.gguf", "llama", "Q8_0", change)[0], match)


@pytest.mark.parametrize(
    ("arch", "match"),
    [
        ("gemma3", "one of the architectures llama, qwen2, qwen3 .*got 'gemma3'"),
        ("qwen2moe", "got 'qwen2moe'"),
        ("clip", "expected a language model .*a projector of images"),
    ],
)
def test_other_architectures_are_refused_by_name(good, tmp_path, arch, match):
    field, path = b"general.architecture\x08\0\0\0", tmp_path / "bad.gguf"
    data = good.read_bytes()
    at = data.index(field) + len(field)
    text = struct.pack("<Q", len(arch)) + arch.encode()
    path.write_bytes(data[:at] + text + data[at + 13 :])
    path.write_bytes(data[:at] + text + data[at + 13 :] + bytes(64))
    refused(path, match)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b"blk.0.attn_k.weight", b"blk.0.attn_q.weight", "the tensor 'blk.0.attn_q.weight' twice"),
        (b"llama.block_count", b"llama.head_counts", "as llama.block_count in .*got none"),
        (b"tokenizer.ggml.tokens", b"tokenizer.ggml.takens", "a tokenizer .*no tokenizer.ggml.tok"),
        (b"tokenizer.ggml.merges", b"tokenizer.ggml.marges", "expected tokenizer.ggml.merges"),
    ],
)
def test_a_file_without_what_it_needs_is_refused(good, tmp_path, old, new, match):
    path = tmp_path / "bad.gguf"
    path.write_bytes(good.read_bytes().replace(old, new, 1))
    refused(path, match)


@pytest.mark.parametrize(("offset", "got"), [(16, "not aligned"), (0, "within another")])
def test_tensors_lie_apart_and_aligned(good, tmp_path, offset, got):
    data, name = bytearray(good.read_bytes()), b"blk.0.attn_k.weight"
    at = data.index(name) + len(name) + 4 + 16 + 4
    data[at : at + 8] = struct.pack("<Q", offset)
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    refused(path, got)
