"""SearchConfig: the options of a search. Each field says here, once, all that is known of it.

The class checks its values by that, documents itself by it, and the command line is made from it.
"""

from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, field, fields
from typing import Any, NamedTuple

from marco_fast.search.answer import ANSWERS, AnswerFunction
from marco_fast.search.numbers import as_float, as_int, shown
from marco_fast.search.replies import REPLIES, ReplyFormat
from marco_fast.search.selection import RULES, SelectFunction
from marco_fast.search.values import VALUES, ValueFunction

__all__ = ["Option", "SearchConfig", "option_of"]

LEAST_NUCLEUS = 2.0**-126  # the smallest normal float32: what sample_confidence takes


class Option(NamedTuple):
    """What a field may be.

    Attributes:
        text: what it means, in a few words.
        kind: bool, int, float, or str for one of `choices`.
        low, high: the range of a number, both included.
        choices: the names that a str may have.
        own: what a caller may pass instead of a name; "" for names alone.
    """

    text: str
    kind: type
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()
    own: str = ""

    def describe(self) -> str:
        """The sentence of the class's documentation."""
        names = " or ".join(f'"{each}"' for each in self.choices)
        if self.own:
            names = f"{names}, or {self.own}" if names else self.own
        form = {int: ",", float: ",g"}.get(self.kind)
        number = f"{self.low:{form}} to {self.high:{form}}" if form else ""
        number = "any int64" if self.low == -(2**63) else number
        allowed = names or number
        return f"{self.text}; {allowed}." if allowed else f"{self.text}."


def option_of(each: "Field[Any]") -> Option:
    """What a field of SearchConfig may be."""
    return each.metadata["option"]


def _number(default: float | None, low: float, high: float, text: str, kind: type = int) -> Any:
    return field(default=default, metadata={"option": Option(text, kind, low, high)})


def _switch(default: bool, text: str) -> Any:
    return field(default=default, metadata={"option": Option(text, bool)})


def _choice(default: str, choices: Iterable[str], text: str, own: str = "") -> Any:
    return field(
        default=default, metadata={"option": Option(text, str, choices=tuple(choices), own=own)}
    )


def _own(text: str, own: str) -> Any:
    return field(default=None, metadata={"option": Option(text, str, own=own)})


@dataclass(frozen=True)
class SearchConfig:
    """The options of a search; every field is checked when it is made.

    Numbers of other libraries count as numbers and are kept as int and float.

    Raises:
        ValueError: a field is not of its type or out of its range.

    Attributes:
    """

    action: str = _choice(
        "mini-step",
        ("step", "mini-step"),
        "what a node of the tree holds: a step that ends with a blank line, or step_tokens tokens",
    )
    step_tokens: int = _number(32, 1, 4096, "tokens of a mini-step (64 or 32 in the paper)")
    max_step_tokens: int = _number(128, 1, 4096, "most tokens of a step")
    expansions: int = _number(64, 1, 10**7, "nodes to add")
    children: int = _number(4, 1, 256, "actions sampled from a selected node")
    parallel: int = _number(16, 1, 4096, "branches of one tree that decode at once")
    rollout_tokens: int = _number(
        8192,
        0,
        10**6,
        "most tokens that a branch decodes after its action, if its reply does not end "
        "before; 0 for no rollout",
    )
    select: str | SelectFunction = _choice(
        "uct",
        RULES,
        "which node gets the next child",
        "a function (tree, config) -> node with a free child slot, or None",
    )
    c_uct: float = _number(1.414, 0.0, 1e6, "weight of the exploration term", float)
    normalize: bool = _switch(
        False, "scale values in UCT by the smallest and the largest value seen in the tree"
    )
    virtual_loss: bool = _switch(
        False,
        "count a visit in flight as one of value 0 (classic virtual loss), not in the exploration "
        "terms alone (WU-UCT)",
    )
    temperature: float = _number(
        0.7, 0.0, 100.0, "temperature of the draws; below 1e-5 the most likely token", float
    )
    top_p: float = _number(0.95, 0.0, 1.0, "nucleus of the draws, above 0", float)
    min_p: float = _number(
        0.0, 0.0, 1.0, "a token must be this probable beside the most likely one; 0 for any", float
    )
    sample_top_k: int = _number(
        0, 0, 2**31 - 1, "draw from so many of the most likely tokens; 0 for all"
    )
    top_k: int = _number(5, 1, 32, "candidates in the confidence's denominator")
    reflect: bool = _switch(
        False,
        "put the reflection phrase where a path first ends its thought, if the context has room "
        "for it and as many tokens again",
    )
    reply: str | ReplyFormat = _choice(
        "auto",
        dict.fromkeys(("auto", *REPLIES)),
        "how a reply is cut into thought and answer; auto tells by the model and its replies",
        "a ReplyFormat",
    )
    final: Callable[[str, str], str] | None = _own(
        "what of an answer is compared with other answers; None for the rule of final_of",
        "a function (answer, question) -> text",
    )
    value: str | ValueFunction = _choice(
        "path",
        VALUES,
        "what a path is worth: the mean confidence of all its tokens, that of the last branch's "
        "tokens, or the tokens' geometric mean probability",
        "a function (token_ids, confidences, text) -> float over the whole path",
    )
    answer: str | AnswerFunction = _choice(
        "vote",
        ANSWERS,
        "which finished path answers: the best of the answer that wins a vote, weighted by the "
        "rank of the paths' values, or a plain majority; or the path of the best value, or of the "
        "most visits",
        "a function (tree, answers by node) -> node or None",
    )
    seed: int = _number(
        0, -(2**63), 2**63 - 1, "the same seed, question and engine give the same tree"
    )
    max_tokens: int | None = _number(None, 1, 10**12, "budget of decoded tokens")
    max_seconds: float | None = _number(None, 0.0, 1e9, "budget of wall time in seconds", float)

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, _checked(each, getattr(self, each.name)))
        if self.top_p < LEAST_NUCLEUS:
            raise ValueError(f"expected top_p to be above 0 as a float32, got {self.top_p!r}")

    @property
    def action_tokens(self) -> int:
        """Most generated tokens of one action."""
        return self.step_tokens if self.action == "mini-step" else self.max_step_tokens

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them; what a caller passed instead of a name by its own name."""
        return {each.name: _json_value(getattr(self, each.name)) for each in fields(self)}


def _json_value(value: Any) -> Any:
    if isinstance(value, ReplyFormat):
        return value.name
    return getattr(value, "__qualname__", repr(value)) if callable(value) else value


def _checked(each: "Field[Any]", value: Any) -> Any:
    """The value as the field keeps it. Raises ValueError unless the field may have it."""
    name, option = each.name, option_of(each)
    if value is None and each.default is None:
        return None
    if option.kind is str:
        own = isinstance(value, ReplyFormat) if name == "reply" else callable(value)
        named = isinstance(value, str) and value in option.choices
        if not named and not (option.own and own):
            names = [repr(choice) for choice in option.choices] or ["None"]
            expected = " or ".join([*names, option.own] if option.own else names)
            raise ValueError(f"expected {name} to be {expected}, got {shown(value)}")
        return value
    if option.kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"expected {name} to be True or False, got {shown(value)}")
        return value
    number = as_int(value) if option.kind is int else as_float(value)
    if number is None or isinstance(value, bool):
        kind = option.kind.__name__
        raise ValueError(f"expected {name} to be a finite {kind}, got {shown(value)}")
    if not option.low <= number <= option.high:
        allowed = f"from {option.low} to {option.high}"
        raise ValueError(f"expected {name} to be {allowed}, got {shown(value)}")
    return number


SearchConfig.__doc__ = f"{SearchConfig.__doc__}".rstrip() + "".join(
    f"\n        {each.name}: {option_of(each).describe()}" for each in fields(SearchConfig)
)
