"""Broken configurations, tokenizers and chat templates: loading says which one, in one line."""

import json

import pytest

from marco_fast import Engine, ModelError

QUESTION = [{"role": "user", "content": "Why?"}]
TEXTS = {
    "nothing": b"",
    "half": b"{",
    "a list": b"[1]",
    "null": b"null",
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "lists in lists": b"[" * 100_000,
    "objects in objects": b'{"a":' * 100_000,
}
JSON_FILES = [
    "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json",
    "special_tokens_map.json", "added_tokens.json",
]  # fmt: skip


def edit_json(path, change) -> None:
    fields = json.loads(path.read_text()) if path.exists() else {}
    change(fields)
    path.write_text(json.dumps(fields))


def refused(source, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        Engine.from_pretrained(source, kv_tokens=64)
    assert str(caught.value).startswith("expected")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", JSON_FILES)
def test_a_file_that_is_no_json_object_is_refused(folder, name, text):
    (folder / name).write_bytes(TEXTS[text])
    refused(folder, "(readable JSON|a JSON object) in .*json|a loadable tokenizer")


@pytest.mark.parametrize("name", [*JSON_FILES, "chat_template.jinja"])
def test_a_folder_in_the_place_of_a_file_is_refused(folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    refused(folder, f"expected (a {name} in|readable (JSON|text) in .*{name})")


@pytest.mark.parametrize("value", ["abc", [[1]], [1, "a"], -1, 288, 10**20, True, 1.5, {"a": 1}])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_an_end_of_sequence_that_is_no_id_is_refused(folder, name, value):
    edit_json(folder / name, lambda fields: fields.update(eos_token_id=value))
    refused(folder, "eos_token_id")


@pytest.mark.parametrize("value", [None, 2, [2, 0], []])
def test_ends_of_sequences_are_one_id_or_several_or_none(folder, value):
    edit_json(folder / "generation_config.json", lambda fields: fields.update(eos_token_id=value))
    with Engine.from_pretrained(folder, kv_tokens=64) as engine:
        assert engine.eos_ids == {2} | {*(value if isinstance(value, list) else [])}


@pytest.mark.parametrize("value", [0, -1, "288", 287, 1000, 1.5, None, [288]])
def test_a_vocabulary_that_is_not_the_weights_is_refused(folder, value):
    edit_json(folder / "config.json", lambda fields: fields.update(vocab_size=value))
    refused(folder, "vocab_size|dimension|got .288, 112. instead of")


@pytest.mark.parametrize("name", ["bos_token", "eos_token", "extra_special_tokens"])
@pytest.mark.parametrize("value", [5, [[1]], True])
def test_a_special_token_that_is_no_text_is_refused(folder, name, value):
    edit_json(folder / "tokenizer_config.json", lambda fields: fields.update({name: value}))
    refused(folder, "a loadable tokenizer")


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("count", [9, 20])
def test_a_tokenizer_with_ids_that_the_model_lacks_is_refused(folder, special, count):
    """280 tokens and 288 embeddings: eight more have a place."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}

    def add(fields, more):
        fields["added_tokens"] += [
            {"id": 280 + i, "content": f"<new {i}>", "special": special, **plain}
            for i in range(more)
        ]

    edit_json(folder / "tokenizer.json", lambda fields: add(fields, 8))
    Engine.from_pretrained(folder, kv_tokens=64).close()
    edit_json(folder / "tokenizer.json", lambda fields: fields["added_tokens"].clear())
    edit_json(folder / "tokenizer.json", lambda fields: add(fields, count))
    says = "'<new 8>' .288., '<new 9>' .289., '<new 10>' .290. and 9 more"
    refused(folder, f"ids below 288, .* got {says if count > 9 else ''}")


def test_a_special_token_for_pictures_may_be_missing_in_a_model_of_text(folder):
    """As in the smallest Gemma 3, whose tokenizer is that of its larger sisters."""

    def add(fields):
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        fields["added_tokens"] += [
            {"id": 280 + i, "content": f"<{'image' if i == 8 else i}>", "special": True, **flags}
            for i in range(9)
        ]

    edit_json(folder / "tokenizer.json", add)
    with Engine.from_pretrained(folder, kv_tokens=64) as engine:
        ids = engine.prompt_token_ids([{"role": "user", "content": "an <image> ?"}], "")
    assert max(ids) < 288


def test_a_tokenizer_that_knows_no_text_is_refused(folder):
    edit_json(folder / "tokenizer.json", lambda fields: fields["model"].update(vocab={}, merges=[]))
    refused(folder, "expected a tokenizer that knows some text")


def test_a_tokenizer_whose_decoder_looks_at_neighbours_is_refused(folder):
    ctc = {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}
    edit_json(folder / "tokenizer.json", lambda fields: fields.update(decoder=ctc))
    refused(folder, "decoder spells each token alike, got CTC")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for %}", "in line 1: Expected an expression"),
        ("\n{% if messages %}", "in line 2: Unexpected end of template"),
        ("{{ messages | nothing }}", "No filter named 'nothing'"),
        ("{% unknown %}", "unknown tag 'unknown'"),
        (3, "expected a text as chat template of .*, got 3"),
        ([{"name": "rag", "template": "x"}], "named \"default\" in .*, got 'rag'"),
    ],
)
def test_a_chat_template_that_is_none_is_refused(folder, template, says):
    (folder / "chat_template.jinja").unlink()
    edit_json(folder / "tokenizer_config.json", lambda f: f.update(chat_template=template))
    refused(folder, says)


def test_a_chat_template_that_is_no_utf8_is_refused(folder):
    (folder / "chat_template.jinja").write_bytes(b"{{ messages }} \xff")
    refused(folder, "readable text in .*chat_template.jinja")


@pytest.mark.parametrize("template", ["", "{{ 1 / 0 }}", "{{ '(' * messages }}", "hello"])
def test_a_chat_template_that_fails_is_named_at_the_first_question(folder, template):
    (folder / "chat_template.jinja").write_text(template)
    with (
        Engine.from_pretrained(folder, kv_tokens=64) as engine,
        pytest.raises(ValueError, match=r"template of .*model'"),
    ):
        engine.prompt_token_ids(QUESTION, "")


def test_of_several_chat_templates_the_default_one_is_used(folder):
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
    edit_json(folder / "tokenizer_config.json", lambda f: f.update(chat_template=several))
    with Engine.from_pretrained(folder, kv_tokens=64) as engine:
        text = engine.tokenizer.decode(engine.prompt_token_ids(QUESTION, ""))
    assert text == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def test_a_path_that_is_not_unicode_is_bad_input():
    with pytest.raises(ValueError, match="expected Unicode text, got half of a surrogate pair"):
        Engine.from_pretrained("caf\udce9")


@pytest.mark.parametrize("path", ["x" * 5000, "x/" + "x" * 5000])
def test_a_path_that_no_file_can_have_is_no_model(path):
    with pytest.raises(ModelError, match=r"^expected .*x"):
        Engine.from_pretrained(path)


@pytest.mark.parametrize("device", [3.5, ("cpu",), object()])
def test_a_device_of_another_type_is_refused(folder, device):
    with pytest.raises(ValueError, match=r"^expected device to be cpu or cuda, got"):
        Engine.from_pretrained(folder, device=device)
