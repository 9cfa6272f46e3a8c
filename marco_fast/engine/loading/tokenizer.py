"""A model's tokenizer: reading it, and refusing one that does not belong to the model."""

import re
from typing import Any

import transformers
from jinja2 import TemplateSyntaxError
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from marco_fast.errors import ModelError

__all__ = ["check_tokenizer", "eos_ids_of", "load_tokenizer"]

# Special tokens that stand for what is not text. A text-only model of a family that sees and hears
# may lack them, at the end of its vocabulary; no template writes them into a chat of texts.
NOT_TEXT = re.compile("image|picture|vision|video|audio|speech|sound", re.IGNORECASE)


def load_tokenizer(source: str, options: dict[str, Any]) -> Any:
    """The tokenizer as its tokenizer.json defines it, if its configuration names no special class.

    AutoTokenizer would take the class of the model's family (Qwen2Tokenizer for "qwen2"), which
    replaces the file's rule for cutting text into words by its own.
    """
    named = get_tokenizer_config(source, **options).get("tokenizer_class")
    if named in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return transformers.PreTrainedTokenizerFast.from_pretrained(source, **options)
    return transformers.AutoTokenizer.from_pretrained(source, **options)


def check_tokenizer(tokenizer: Any, model: Any, name: str) -> None:
    """Refuses what is no tokenizer of a model of that name.

    Raises:
        ModelError: it is none with a tokenizer.json, or as the checks of its parts say.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        got = type(tokenizer).__name__
        raise ModelError(f"expected a tokenizer with a tokenizer.json for {name!r}, got {got}")
    check_vocabulary(tokenizer, model)
    check_template(tokenizer, name)


def check_vocabulary(tokenizer: Any, model: Any) -> None:
    """Refuses a tokenizer that has token ids which the model has no embedding of.

    A model may have more embeddings than its tokenizer has tokens: they fill its matrices up.

    Raises:
        ModelError: the numbers, and the tokens; or the tokenizer knows no text at all.
    """
    if not tokenizer("Why? 1", add_special_tokens=False)["input_ids"]:
        raise ModelError("expected a tokenizer that knows some text, got no token for 'Why? 1'")
    rows = len(model.get_input_embeddings().weight)
    special = {index for index, each in tokenizer.added_tokens_decoder.items() if each.special} - {
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    }
    beyond = sorted(
        (index, token)
        for token, index in tokenizer.get_vocab().items()
        if index >= rows and not (index in special and NOT_TEXT.search(token))
    )
    if beyond:
        names = ", ".join(f"{token!r} ({index})" for index, token in beyond[:3])
        more = f" and {len(beyond) - 3} more" if len(beyond) > 3 else ""
        raise ModelError(
            f"expected a tokenizer with ids below {rows}, the model's vocabulary, got {names}{more}"
        )


def check_template(tokenizer: Any, name: str) -> None:
    """Refuses a chat template that is none, of the model of that name.

    Raises:
        ModelError: the template has a mistake of syntax or is no text, or there are several and
            none is the default one.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            names = ", ".join(map(repr, sorted(template)))
            raise ModelError(
                f'expected a chat template named "default" in {name!r}, got {names or "none"}'
            )
        template = template["default"]
    if template is None:
        return
    if not isinstance(template, str):
        raise ModelError(f"expected a text as chat template of {name!r}, got {template!r}")
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except TemplateSyntaxError as error:
        raise ModelError(
            f"expected a chat template without mistakes in {name!r}, got in line {error.lineno}: "
            f"{error.message}"
        ) from error
    except Exception:  # it does not like this chat, or none: the first question's error says so
        return


def eos_ids_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """The ids that end a sequence, of all who name some: tokenizer, generation and model config.

    Raises:
        ModelError: what is named is no id of the model's vocabulary.
    """
    rows = len(model.get_input_embeddings().weight)
    named = {
        "tokenizer": tokenizer.eos_token_id,
        "generation_config.json": getattr(model.generation_config, "eos_token_id", None),
        "config.json": getattr(model.config, "eos_token_id", None),
    }
    found: set[int] = set()
    for place, ids in named.items():
        for each in ids if isinstance(ids, list) else [] if ids is None else [ids]:
            if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each < rows:
                raise ModelError(
                    f"expected eos_token_id of the {place} to be below {rows}, the model's "
                    f"vocabulary, got {ids!r}"
                )
            found.add(each)
    return frozenset(found)
