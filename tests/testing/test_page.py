"""The page on testing names every law, every strategy and every option."""

from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest

from lotr_tn.testing import DecompositionLaws, check_decomposition, laws, strategies
from lotr_tn.testing.promises import LawOptions

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*laws.__all__, *strategies.__all__])
def test_every_name_is_on_the_page(name):
    assert f"`{name}`" in PAGE or f"`{name}(" in PAGE or name == "Decomposition"


def test_class_and_function_take_the_same_options():
    options = {field.name for field in fields(LawOptions)} | {"max_examples"}
    assert options == set(signature(check_decomposition).parameters) - {"decompose"}
    assert options <= set(dir(DecompositionLaws))
    for name in options:
        assert f"| `{name}` |" in PAGE
