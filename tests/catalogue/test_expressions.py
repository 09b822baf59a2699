"""Regular expressions in linear time: what Python's own engine says, and no more time than that."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lotr_tn.catalogue.expressions import regular_expression
from lotr_tn.errors import OptionError

PATHS = [
    "",
    "q_proj",
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.mlp.down_proj",
    "vision.layers.1.q_proj",
    "transformer.h.3.attn.c_attn",
    "q_proj\n",
    "a\nb",
    "x-1.É٣",
]


def same(pattern, text):
    ours, theirs = regular_expression(pattern, "it takes one"), re.compile(pattern)
    assert ours.fullmatch(text) == (theirs.fullmatch(text) is not None), (pattern, text)
    found = theirs.search(text)
    assert ours.search(text) == (None if found is None else [found[0], *found.groups()])


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "q_proj",
        r"(.*\.)?(q_proj)$",
        r"(.*\.)?(layers.1.q_proj)$",
        r"^model\.layers\.(\d+)\..*",
        r"(q|k|v)_proj",
        r"layers\.[0-9]+\.(self_attn|mlp)\.",
        r".*\.(?:1?[0-5])\.(?P<kind>\w+)",
        r"(?!.*vision).*q_proj$",
        r"^(?=model)(.*?)\.(\d{1,2})\b",
        r"\bq_",
        r"[^.]+$",
        r"(?i)Q_PROJ",
        r"(?s)a.b",
        r"a{2}|x{0,1}-{1,}\d",
        r"(\w)*?\.",
        r"\Aq_proj\Z",
        r"q_proj$",
        r"[]x-]+",
        r"[\d_]+\x2e?",
        r"{",
        r"a{,}\.",
        r"(a)|(b)|(q)",
        r"(?#why)q_\D",
        r"\.\B|\Bl",
        r"(a*)+$",
        r"\w+\s?",
        r"É|[À-ÿ]",
    ],
)
def test_patterns_that_people_write(pattern):
    for path in PATHS:
        same(pattern, path)


atoms = st.sampled_from(
    ["a", "b", ".", "[ab]", "[^a]", r"\d", r"\w", "$", "^", r"\b", "(a|b)", "(?:ab)", "1"]
)
repeats = st.sampled_from(["", "", "*", "+", "?", "*?", "+?", "{1,2}", "{2}"])


@st.composite
def patterns(draw):
    parts = [
        atom if atom in ("$", "^", r"\b") else atom + draw(repeats)
        for atom in draw(st.lists(atoms, max_size=5))
    ]
    return draw(st.sampled_from(["{}", "({})", "x|{}", "({}|a)b?"])).format("".join(parts))


@settings(max_examples=150, deadline=None)
@given(patterns(), st.text("ab1._\n", max_size=8))
def test_any_pattern_means_what_it_means_to_python(pattern, text):
    same(pattern, text)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a|a)*$",
        "(.*a){25}x",
        r"((l|a|y|e|r|s|\.)+)+Z",
        "(x+x+)+y",
        ".*.*.*.*.*.*x",
        "(?!(a+)+$)b",
        "(a?){300}a{300}",
    ],
)
def test_no_pattern_takes_long(pattern):
    begun = time.perf_counter()
    machine = regular_expression(pattern, "it takes one")
    machine.fullmatch("a" * 60 + "b")
    machine.search("a" * 60 + "b")
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(", "not closed"),
        (")", "not opened"),
        ("[", "a set is not closed"),
        ("*", "nothing to repeat"),
        ("^*", "nothing"),
        ("a**", "repeat of a repeat"),
        ("a{2,1}", "at least more"),
        ("a{1,99999999999}", "more than 5000 times"),
        ("((a{400}){400}){400}", "too large"),
        ("((?:){5000}){5000}", "too large"),
        ("(" * 500 + ")" * 500, "more than 50 groups"),
        (r"(a)\1", "references"),
        ("(?<=a)b", "lookbehind"),
        ("(?>a)", "atomic"),
        ("a++", "possessive"),
        ("(?P<x>a)(?P<x>b)", "two groups are called x"),
        ("x(?i)a", "not at the beginning"),
        ("\\", "backslash"),
        (r"\q", "bad escape"),
        ("[b-a]", "range"),
        ("(?P<1>a)", "unknown group"),
        ("(?(1)a)", "condition"),
        ("a{" + "9" * 5000 + "}", "more than"),
    ],
)
def test_what_is_left_out_is_named(pattern, why):
    with pytest.raises(OptionError, match=why) as caught:
        regular_expression(pattern, "--keep takes a regular expression")
    assert len(str(caught.value)) < 500
