"""What a caller may say to a model's chat template, such as {"enable_thinking": False}."""

import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, TemplateError
from jinja2.meta import find_undeclared_variables

from marco_fast.ops.numbers import described
from marco_fast.text import check_unicode

__all__ = ["chat_options", "warn_of_unknown"]

# What the tokenizer's call and the chat itself say to a template, or to what renders it.
OWNED = frozenset(
    "self conversation messages tools documents chat_template add_generation_prompt "
    "continue_final_message tokenize sanitize_control_tokens padding truncation max_length "
    "return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs "
    "raise_exception strftime_now bos_token eos_token unk_token sep_token pad_token cls_token "
    "mask_token additional_special_tokens".split()
)


def chat_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """A caller's options of a chat template, checked: a copy that nothing else changes.

    Raises:
        ValueError: no mapping of texts to values of JSON, one that is not Unicode, or a name of
            what the chat or the tokenizer's call says.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(each, str) for each in options):
        raise ValueError(
            'expected options of the chat template like {"enable_thinking": False}, got '
            f"{described(options)}"
        )
    for name, value in options.items():
        if name in OWNED:
            raise ValueError(
                f"expected options of the chat template itself, got {name!r}, which is set for it"
            )
        try:
            text = json.dumps({name: value}, allow_nan=False, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            raise ValueError(
                f"expected option {name!r} of the chat template to be a value of JSON, got "
                f"{described(value)}"
            ) from None
        check_unicode(text)
    return json.loads(json.dumps(dict(options)))


def warn_of_unknown(options: Mapping[str, Any], template: str, name: str) -> None:
    """Warn of options that a model's chat template does not read: they change nothing."""
    read = _read(template)
    unknown = sorted(set(options) - read) if read is not None else []
    if not unknown:
        return
    known = ", ".join(sorted(read - OWNED)) if read else ""
    warnings.warn(
        f"the chat template of {name!r} does not read {', '.join(unknown)}, which changes nothing "
        f"(it reads {known or 'no options'})",
        stacklevel=4,
    )


def _read(template: str) -> set[str] | None:
    """The names that a template takes from outside; None where it cannot be read here."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    # transformers' own tag for what the assistant says
    plain = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)
    try:
        return find_undeclared_variables(environment.parse(plain))
    except TemplateError:
        return None
