"""Property tests for stacks of updates and their decompositions, for anyone to use.

`laws` holds the laws as plain functions that raise `AssertionError`. The rest requires the
hypothesis package, which the extra `test` installs: `strategies` draws inputs, `DecompositionLaws`
is a test case to inherit, and `check_decomposition` reports which laws a decomposition breaks.
"""

from typing import TYPE_CHECKING, Any

from lotr_tn.testing.formats import Cut, FormatLaws, Sizes, register_format_laws

if TYPE_CHECKING:
    from lotr_tn.testing.case import DecompositionLaws
    from lotr_tn.testing.check import LawReport, Report, check_decomposition

__all__ = [
    "Cut",
    "DecompositionLaws",
    "FormatLaws",
    "LawReport",
    "Report",
    "Sizes",
    "check_decomposition",
    "register_format_laws",
]


def __getattr__(name: str) -> Any:
    """What requires hypothesis is imported when it is asked for."""
    if name in __all__:
        try:
            import hypothesis  # noqa: F401 - only to see whether it is there
        except ImportError:
            raise ImportError(
                f"lotr_tn.testing.{name} needs the hypothesis package, which is not installed: "
                "pip install 'lotr-tn[test]'"
            ) from None
        from lotr_tn.testing import case, check

        return getattr(case if hasattr(case, name) else check, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
