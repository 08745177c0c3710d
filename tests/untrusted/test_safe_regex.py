"""Expressions for names of modules: Python's own ``re`` is the oracle, where it comes to an end."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge.untrusted.safe_regex import compile_matcher

ATOMS = st.sampled_from(["a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", r"\w", "[a-c.]", "^", "$"])
REPEATS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,2}", "{,1}", "{1,}", "*?", "+?", "??"])


def _larger(smaller: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    grouped = st.tuples(st.sampled_from(["(", "(?:", "(?=", "(?!", "(?P<n>"]), smaller).map(
        lambda parts: f"{parts[0]}{parts[1]})"
    )
    repeated = st.tuples(ATOMS | grouped, REPEATS).map("".join)
    return (
        st.lists(repeated, max_size=4).map("".join)
        | st.lists(smaller, min_size=2, max_size=3).map("|".join)
        | grouped
    )


@given(
    st.recursive(ATOMS, _larger, max_leaves=8),
    st.text("abc.1", max_size=7),
    st.sampled_from(["KEY", r"(.*\.)?(KEY)$", r".*\.KEY$"]),
)
def test_matches_what_re_matches(pattern: str, name: str, wrapped: str) -> None:
    try:
        expected = re.match(wrapped.replace("KEY", pattern), name)
    except re.error:
        with pytest.raises(re.error):
            compile_matcher(pattern, wrapped)
        return
    assert bool(compile_matcher(pattern, wrapped)(name)) == bool(expected)


REAL = [
    r"model\.layers\.(0|1|2|3|10|11)\.self_attn\.(q|k|v|o)_proj",
    "(self_attn|mlp).*(q_proj|v_proj|down_proj)",
    r"^(?!.*lm_head).*\.(?:layers)\.([0-9]|1[0-5])\.(self_attn)\.(q_proj)$",
    "(a)(b)(c)(d)(q_proj)",
    r"q_proj|k_proj",
]
NAMES = ["model.layers.11.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head"]


@pytest.mark.parametrize("pattern", REAL)
def test_expressions_as_people_write_them(pattern: str) -> None:
    for wrapped in (r"(.*\.)?(KEY)$", r".*\.KEY$"):
        for name in NAMES:
            expected = re.match(wrapped.replace("KEY", pattern), name)
            assert bool(compile_matcher(pattern, wrapped)(name)) == bool(expected)


# re needs longer than the universe has been there for most of them.
HOSTILE = [
    ".?" * 40 + "X",
    "(.*)*X",
    "((((((((((.*)*)*)*)*)*)*)*)*)*)*X",
    "(a|a.|.)*X",
    ".*" * 60 + "X",
    "(.|.)" * 40 + "X",
    "(.{0,30}){0,30}X",
    "(.{1000000000}){1000000000}X",
    "(?=(.*)*X)(.*)*",
    "(" * 60 + ".*" + ")*" * 60 + "X",
]


@pytest.mark.parametrize("pattern", HOSTILE, ids=lambda pattern: pattern[:12])
def test_hostile_expressions_come_to_an_end(pattern: str) -> None:
    assert not compile_matcher(pattern, r"(.*\.)?(KEY)$")("model.layers.0.self_attn.q_proj")


@pytest.mark.parametrize(
    "pattern", ["(", ")", "*", "a**", "[", r"(a)\1", "(?<=a)b", "(?i)a", "a*+"]
)
def test_what_is_not_matched_here_is_refused(pattern: str) -> None:
    with pytest.raises(re.error):
        compile_matcher(pattern)


@pytest.mark.parametrize("pattern", ["a" * 2000 + "*", "(" * 900 + ".*" + ")" * 90])
def test_long_ones_are_refused(pattern: str) -> None:
    with pytest.raises((re.error, RecursionError)):
        compile_matcher(pattern)
