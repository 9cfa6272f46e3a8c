"""SearchConfig: ranges, choices, callables, and what it says of itself."""

import math
from dataclasses import fields

import pytest

from marco_fast.search.config import SearchConfig, option_of
from marco_fast.search.replies import Reply, ReplyFormat

BAD = [
    ("action", "leap"),
    ("action", None),
    ("value", "best"),
    ("answer", ""),
    ("answer", None),
    ("select", "ucb"),
    ("reply", "xml"),
    ("reply", print),
    ("step_tokens", 0),
    ("step_tokens", 1.5),
    ("step_tokens", True),
    ("max_step_tokens", -1),
    ("expansions", 0),
    ("children", 0),
    ("children", 257),
    ("parallel", 0),
    ("rollout_tokens", -1),
    ("c_uct", math.nan),
    ("c_uct", math.inf),
    ("c_uct", -0.1),
    ("temperature", -1e-9),
    ("temperature", math.nan),
    ("temperature", "hot"),
    ("top_p", 0),
    ("top_p", 0.0),
    ("top_p", 1.01),
    ("top_k", 0),
    ("top_k", 33),
    ("seed", 2**63),
    ("seed", None),
    ("max_tokens", 0),
    ("max_seconds", -1.0),
    ("max_seconds", math.inf),
    ("reflect", 1),
    ("normalize", "yes"),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda each: str(each))
def test_options_out_of_range_are_refused_with_what_was_expected(name, value):
    with pytest.raises(ValueError, match=f"expected {name} to be .*") as caught:
        SearchConfig(**{name: value})
    assert "got" in str(caught.value)


def test_the_edges_of_the_ranges_are_allowed():
    SearchConfig(temperature=0, top_p=1, c_uct=0, rollout_tokens=0, max_seconds=0, seed=-(2**63))
    SearchConfig(value=lambda tokens, confidences, text: 0.0)
    SearchConfig(select=lambda tree, config: None, answer=lambda tree, answers: None)


def test_a_config_is_json_ready():
    bare = ReplyFormat("bare", b"", b"", lambda text: Reply("", text))
    values = SearchConfig(value=math.fsum, select=max, reply=bare).to_dict()
    assert (values["value"], values["select"], values["reply"]) == ("fsum", "max", "bare")
    assert {*values} == {each.name for each in fields(SearchConfig)}


def test_every_field_is_described_where_help_looks():
    for each in fields(SearchConfig):
        assert f"\n        {each.name}: {option_of(each).text}" in SearchConfig.__doc__
