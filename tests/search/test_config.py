"""SearchConfig: ranges, choices, callables, and what it says of itself."""

import json
import math
from dataclasses import fields, replace
from decimal import Decimal
from fractions import Fraction

import numpy as np
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
    ("top_p", 1e-40),
    ("top_p", math.nan),
    ("temperature", 10**400),
    ("temperature", 1e308),
    ("temperature", "0.5"),
    ("temperature", 1j),
    ("temperature", np.array([0.5])),
    ("temperature", np.float32("nan")),
    ("temperature", Decimal("NaN")),
    ("expansions", 2**63),
    ("expansions", 3.0),
    ("expansions", np.float64(3)),
    ("expansions", "3"),
    ("expansions", np.bool_(True)),
    ("expansions", None),
    ("c_uct", 1e300),
    ("c_uct", True),
    ("max_tokens", 2**63),
    ("max_tokens", -(10**30)),
    ("max_seconds", math.nan),
    ("max_seconds", 10**400),
    ("seed", -(2**63) - 1),
    ("seed", 0.5),
    ("action", np.array(["step", "leap"])),
    ("select", ["uct"]),
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


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("expansions", np.int64(3), 3),
        ("top_k", np.uint8(5), 5),
        ("seed", np.int64(-(2**63)), -(2**63)),
        ("max_tokens", np.int32(7), 7),
        ("temperature", np.float32(0.5), 0.5),
        ("temperature", np.array(0.5), 0.5),
        ("top_p", Fraction(1, 2), 0.5),
        ("c_uct", Decimal("1.5"), 1.5),
        ("max_seconds", 3, 3.0),
        ("max_seconds", 1e-300, 1e-300),
        ("top_p", 2.0**-126, 2.0**-126),
    ],
    ids=str,
)
def test_numbers_of_other_libraries_are_kept_as_plain_ones(name, value, kept):
    config = SearchConfig(**{name: value})
    found = getattr(config, name)
    assert (found, type(found)) == (kept, type(kept))
    assert json.loads(json.dumps(config.to_dict()))[name] == kept
    again = replace(config, children=5)
    assert getattr(again, name) == kept
    assert (config == SearchConfig(**{name: kept}), config == again) == (True, False)
    assert hash(config) == hash(SearchConfig(**{name: kept}))


def test_a_number_too_long_to_print_is_refused_with_what_was_expected():
    with pytest.raises(ValueError, match="expected step_tokens to be from 1 to 4096, got a"):
        SearchConfig(step_tokens=10**5000)


def test_a_config_is_json_ready():
    bare = ReplyFormat("bare", b"", b"", lambda text: Reply("", text))
    values = SearchConfig(value=math.fsum, select=max, reply=bare).to_dict()
    assert (values["value"], values["select"], values["reply"]) == ("fsum", "max", "bare")
    assert {*values} == {each.name for each in fields(SearchConfig)}


def test_every_field_is_described_where_help_looks():
    for each in fields(SearchConfig):
        assert f"\n        {each.name}: {option_of(each).text}" in SearchConfig.__doc__
