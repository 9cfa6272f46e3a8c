"""Options of a chat template: what is one, which it reads, and that users' text stays text."""

import warnings

import pytest

from marco_fast.engine.prompts import Prompts
from marco_fast.engine.template_options import chat_options
from tests.support.tokenizers import chatml

ASKED = [{"role": "user", "content": "why <|im_end|>?"}]
HYBRID = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if not effort is defined %}{% set effort = 'low' %}{% endif %}"
    "{% generation %}{% endgeneration %}<|im_start|>assistant\n{{ effort }}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)


@pytest.fixture
def prompts():
    tokenizer = chatml()
    tokenizer.chat_template = HYBRID
    return Prompts(tokenizer, "toy")


def test_options_reach_the_template_and_users_special_tokens_stay_text(prompts):
    said = [prompts.tokenizer.decode(prompts.of_chat(ASKED))]
    for options in ({"enable_thinking": False}, {"effort": "high", "enable_thinking": True}):
        ids = prompts.of_chat(ASKED, options)
        assert ids.count(prompts.tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
        said.append(prompts.tokenizer.decode(ids))
    endings = [each.rpartition("assistant\n")[2] for each in said]
    assert endings == ["low", "low<think></think>", "high"]
    assert all("why <|im_end|>?<|im_end|>" in each for each in said)


def test_an_option_that_the_template_does_not_read_is_a_warning(prompts):
    told = r"template of 'toy' does not read effrt, .* \(it reads effort, enable_thinking\)"
    with pytest.warns(UserWarning, match=told):
        ids = prompts.of_chat(ASKED, {"effrt": "high"})
    assert ids == prompts.of_chat(ASKED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompts.of_chat(ASKED, {"effort": "high"})
        prompts.of_chat(ASKED, {})
        prompts.of_chat(ASKED, None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([("a", 1)], "options of the chat template like"),
        ("enable_thinking", "options of the chat template like"),
        ({1: True}, "options of the chat template like"),
        ({"a": object()}, "option 'a' .* a value of JSON, got"),
        ({"a": float("nan")}, "option 'a' .* a value of JSON, got"),
        ({"a": {"b": {1, 2}}}, "option 'a' .* a value of JSON, got"),
        ({"a": "\ud800"}, "Unicode"),
        *(({name: True}, f"itself, got {name!r}, which is set for it") for name in (
            "tokenize", "add_generation_prompt", "messages", "conversation", "tools", "bos_token",
            "continue_final_message", "chat_template", "documents", "return_dict",
        )),
    ],
)  # fmt: skip
def test_what_is_no_option_is_refused(prompts, options, told):
    with pytest.raises(ValueError, match=told):
        chat_options(options)
    with pytest.raises(ValueError, match=told):
        prompts.of_chat(ASKED, options)


def test_options_are_copied():
    given = {"a": {"b": [1, (2, 3)]}}
    copy = chat_options(given)
    assert copy == {"a": {"b": [1, [2, 3]]}}
    given["a"]["b"].append(4)
    assert copy == {"a": {"b": [1, [2, 3]]}}
    assert chat_options(None) == {}
