"""The pages on testing name every law of decompositions, and the docstrings every option."""

from dataclasses import fields
from inspect import getdoc, signature
from pathlib import Path

import pytest

from lotr_tn.testing import DecompositionLaws, check_decomposition
from lotr_tn.testing.promises import LAWS, LawOptions

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("law", [law.name for law in LAWS])
def test_every_law_of_decompositions_is_on_the_page(law):
    assert f"| `{law}` |" in (DOCS / "testing.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("module", ["laws", "strategies", "case", "check"])
def test_the_reference_lists_every_module(module):
    page = (DOCS / "api" / "testing.md").read_text(encoding="utf-8")
    assert f"::: lotr_tn.testing.{module}\n" in page


def test_class_and_function_take_the_same_options():
    options = {field.name for field in fields(LawOptions)} | {"max_examples"}
    assert options == set(signature(check_decomposition).parameters) - {"decompose"}
    assert options <= set(dir(DecompositionLaws))
    for name in options:
        assert f"\n    {name}: " in (getdoc(check_decomposition) or "")
        assert f"\n    {name}: " in (getdoc(DecompositionLaws) or "")
