"""Prompts: a chat as a model's token ids, in which the special tokens that a user types stay text.

Nothing in a rendered prompt tells a template's `<|im_end|>` from a user's. So the template is
rendered a second time, with a stand-in for each character of the chat's contents: a character that
occurs nowhere else. Where the two renderings agree, the template wrote; where they differ, a user
did. A special token with a user's character in it is text: then a copy of the tokenizer whose
special tokens have names that nobody typed encodes the prompt. All others are encoded as ever.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from jinja2 import TemplateError
from tokenizers import Tokenizer

from marco_fast.engine.template_options import chat_options, warn_of_unknown
from marco_fast.text import check_unicode

__all__ = ["Prompts"]

Messages = Sequence[Mapping[str, str]]
Table = dict[int, str]  # of str.translate
Options = Mapping[str, Any]  # of the chat template

# Letters stand for letters and digits, code points without a meaning for the rest: templates and
# tokenizers may ask what kind of character they see. Neither kind has cases or normal forms.
LETTERS = range(0x20000, 0x2A6E0)
OTHERS = range(0x40000, 0xE0000)


class Special(NamedTuple):
    """A special token of a text: its id, and where it is, with the white space it swallows."""

    id: int
    begin: int
    end: int


class Prompts:
    """Makes the prompts of one model.

    Args:
        tokenizer: a transformers tokenizer backed by the tokenizers library.
        name: of the model, for error messages.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.tokenizer, self.name = tokenizer, name
        added = tokenizer.added_tokens_decoder.items()
        self.special = {index: token.content for index, token in added if token.special}
        self.renamed: dict[bool, RenamedTokenizer] = {}

    def of_chat(self, messages: Messages, options: Options | None = None) -> list[int]:
        """The chat in the model's template, up to where its reply begins.

        Args:
            messages: role and content of each.
            options: of the template; a UserWarning names those that it does not read.

        Raises:
            ValueError: the template does not take the chat, or leaves the question out; the options
                are not as chat_options() takes them.
        """
        given = chat_options(options)
        if given:
            warn_of_unknown(given, self.tokenizer.get_chat_template(), self.name)
        text, marked = self._render_marked(messages, given)
        ids, found = self._encode(text)
        if all(text[begin:end] == marked[begin:end] for _, begin, end in found):
            return ids
        found = self._encode(marked)[1]
        return self._encode_typed(text, [s for s in found if _same(text, marked, s)])

    def of_text(self, text: str) -> list[int]:
        """A text, none of it special, behind the tokens that begin a sequence (such as a BOS).

        Those with which the tokenizer ends one are left out: the model is to go on.
        """
        check_unicode(text)
        options = {"return_special_tokens_mask": True, "return_offsets_mapping": True}
        encoded = self.tokenizer(text, **options)
        ids, around = encoded["input_ids"], encoded["special_tokens_mask"]
        begin = around.index(0) if 0 in around else len(ids)
        end = around.index(1, begin) if 1 in around[begin:] else len(ids)
        if self._specials(ids[begin:end], encoded["offset_mapping"][begin:end], text):
            return ids[:begin] + self._encode_typed(text, [])
        return ids[:end]

    def _render(self, messages: Messages, options: Options) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, **options
            )
        except Exception as error:  # templates are programs: they can raise anything
            cause = str(error) if isinstance(error, TemplateError) else repr(error)
            roles = ", ".join(each["role"] for each in messages)
            raise ValueError(
                f"expected a chat that the template of {self.name!r} takes, got the roles "
                f"{roles}: {cause}"
            ) from error
        if not text.strip():
            raise ValueError(
                f"expected a prompt from the chat template of {self.name!r}, got {text[:60]!r}"
            )
        return str(text)

    def _render_marked(self, messages: Messages, options: Options) -> tuple[str, str]:
        """The rendered chat, and the same with stand-ins for what users wrote, equally long.

        A template that looks into the contents cannot be rendered twice alike. It then sees all of
        them but the special tokens; if control tokens come and go with that, none of them.
        """
        contents = [each["content"] for each in messages]
        check_unicode(*contents)
        text = self._render(messages, options)
        tables, back = _stand_ins(contents, text + "".join(self.special.values()))
        try:
            opaque = self._render(_with(messages, [c.translate(t) for c, t in tables]), options)
        except ValueError:  # it wants to see the contents
            opaque = None
        self._check_asked(messages, options, tables[-1][1], text, opaque)
        if opaque is not None and _aligned(text, opaque, back):
            return text, opaque
        marked = self._render(_with(messages, [self._hide(c, t) for c, t in tables]), options)
        if opaque is not None and self._control_ids(marked) != self._control_ids(opaque):
            marked = opaque
        return marked.translate(back), marked

    def _check_asked(
        self, messages: Messages, options: Options, table: Table, text: str, opaque: str | None
    ) -> None:
        """Whether the question is in the prompt, or changes it at least."""
        if not table or any(each in (opaque or "") for each in table.values()):
            return
        other = [*messages[:-1], {**messages[-1], "content": next(iter(table.values()))}]
        try:
            unasked = self._render(other, options) == text
        except ValueError:  # it wants to see the contents
            return
        if unasked:
            raise ValueError(
                f"expected the chat template of {self.name!r} to write the question into the "
                f"prompt, got {text[:60]!r}"
            )

    def _hide(self, content: str, table: Table) -> str:
        """A content with stand-ins for the special tokens in it; of two the longer one counts."""
        names = sorted(self.special.values(), key=len, reverse=True)
        pattern = "|".join(map(re.escape, names)) or "(?!)"
        return re.sub(pattern, lambda found: found[0].translate(table), content)

    def _control_ids(self, marked: str) -> list[int]:
        return [each.id for each in self._encode(marked)[1]]

    def _encode(self, text: str) -> tuple[list[int], list[Special]]:
        """Token ids, and the special tokens among them."""
        options = {"add_special_tokens": False, "split_special_tokens": False}
        encoded = self.tokenizer(text, return_offsets_mapping=True, **options)
        ids = encoded["input_ids"]
        return ids, self._specials(ids, encoded["offset_mapping"], text)

    def _specials(self, ids: list[int], offsets: list[tuple[int, int]], text: str) -> list[Special]:
        """The special tokens that stand in the text, not the unknown token for what it stands."""
        unknown = self.tokenizer.unk_token_id
        return [
            Special(index, *place)
            for index, place in zip(ids, offsets, strict=True)
            if index in self.special
            and (index != unknown or self.special[index] in text[slice(*place)])
        ]

    def _encode_typed(self, text: str, specials: list[Special]) -> list[int]:
        """The ids of a text that has these special tokens alone; what looks like others is text."""
        unknown = self.tokenizer.unk_token_id
        wanted = [each.id for each in specials if each.id != unknown]
        ids: list[int] = []
        for normalized in (True, False):
            renamed = self.renamed.get(normalized)
            if renamed is None or renamed.mark in text:
                renamed = RenamedTokenizer(self.tokenizer, text, normalized=normalized)
                self.renamed[normalized] = renamed
            ids = renamed.encode(text, specials)
            if [each for each in ids if each in self.special and each != unknown] == wanted:
                break
        return ids


class RenamedTokenizer:
    """A copy of a tokenizer that knows its special tokens by other names.

    Args:
        tokenizer: the original.
        text: what it is made for: `mark`, in which all names begin and end, is not in it.
        normalized: whether special tokens may be looked for behind the normalizer, as in the
            original. It can change a name beyond recognition.
    """

    def __init__(self, tokenizer: Any, text: str, *, normalized: bool) -> None:
        form = json.loads(tokenizer.backend_tokenizer.to_str())
        taken = {*text}
        self.mark = next(chr(each) for each in LETTERS if chr(each) not in taken)
        self.names: dict[int, str] = {}
        self.texts: dict[int, str] = {}
        for token in form["added_tokens"]:
            self.texts[token["id"]] = token["content"]
            if token["special"]:
                self.names[token["id"]] = f"{self.mark}{token['id']}{self.mark}"
                token["content"], token["single_word"] = self.names[token["id"]], False
                token["normalized"] = token["normalized"] and normalized
        _rename(form["model"], self.names)
        form |= {"truncation": None, "padding": None, "post_processor": None}
        self.backend = Tokenizer.from_str(json.dumps(form))
        # Added tokens that the model's own vocabulary lacks are numbered anew.
        self.ids = {
            self.backend.token_to_id(self.names.get(each, text)): each
            for each, text in self.texts.items()
        }

    def encode(self, text: str, specials: list[Special]) -> list[int]:
        """The ids of the original: of these special tokens, and of the text between them."""
        pieces, end = [], 0
        for each in specials:
            pieces += [text[end : each.begin], self._renamed(text[each.begin : each.end], each.id)]
            end = each.end
        whole = "".join([*pieces, text[end:]])
        ids = self.backend.encode(whole, add_special_tokens=False).ids
        return [self.ids.get(each, each) for each in ids]

    def _renamed(self, place: str, index: int) -> str:
        """A special token's name within the white space around it."""
        written = self.texts[index] if self.texts[index] in place else place.strip()
        return place.replace(written, self.names[index], 1)


def _rename(model: dict[str, Any], names: dict[int, str]) -> None:
    """Gives a tokenizer's model (of tokenizer.json) other names for some of its ids."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        old = {token for token, index in vocabulary.items() if index in names}
        model["vocab"] = {names.get(index, token): index for token, index in vocabulary.items()}
        if model.get("unk_token") in old:
            model["unk_token"] = names[vocabulary[model["unk_token"]]]
        if "merges" in model:
            pairs = [each.split(" ") if isinstance(each, str) else each for each in model["merges"]]
            model["merges"] = [each for each in pairs if not old & {*each, "".join(each)}]
    else:  # Unigram: tokens and their scores
        model["vocab"] = [[names.get(i, each), score] for i, (each, score) in enumerate(vocabulary)]


def _with(messages: Messages, contents: list[str]) -> list[dict[str, str]]:
    """The messages with other contents."""
    return [{**m, "content": content} for m, content in zip(messages, contents, strict=True)]


def _same(text: str, marked: str, special: Special) -> bool:
    return text[special.begin : special.end] == marked[special.begin : special.end]


def _stand_ins(contents: list[str], avoid: str) -> tuple[list[tuple[str, Table]], Table]:
    """Each content with a table of stand-ins for its characters, and the way back.

    White space stays, since templates strip it. The last content has stand-ins of its own.
    """
    taken = {*avoid, *"".join(contents)}

    def free(points: range) -> Iterator[str]:
        return (chr(each) for each in points if chr(each) not in taken)

    others = free(OTHERS)
    letters = chain(free(LETTERS), others)
    tables: list[tuple[str, Table]] = []
    back: Table = {}
    for part in (contents[:-1], contents[-1:]):
        table: Table = {}
        for character in dict.fromkeys("".join(part)):
            if not character.isspace():
                like = letters if character.isalnum() or character == "_" else others
                table[ord(character)] = next(like)
                back[ord(table[ord(character)])] = character
        tables += [(content, table) for content in part]
    return tables, back


def _aligned(text: str, marked: str, back: Table) -> bool:
    """Whether the two differ in stand-ins alone."""
    return len(text) == len(marked) and all(
        one == other or ord(other) in back for one, other in zip(text, marked, strict=True)
    )
