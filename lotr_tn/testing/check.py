"""A report on a decomposition of one's own. Requires the hypothesis package."""

import unittest
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis.errors import Flaky
from hypothesis.strategies import SearchStrategy

from lotr_tn.testing.promises import Law, LawOptions, arguments_of, promised, settings_for
from lotr_tn.testing.strategies.formats import ToArray


@dataclass(frozen=True)
class LawReport:
    """What was found out about one law.

    Attributes:
        name: the law, as in `lotr_tn.testing.laws`.
        verdict: "holds", "broken", or "does not apply".
        message: what is wrong, or why it does not apply.
        example: where it is broken, the smallest input by name.
    """

    name: str
    verdict: str
    message: str = ""
    example: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.verdict != "broken":
            note = f" ({self.message})" if self.message else ""
            return f"{self.name:30}{self.verdict}{note}"
        lines = [f"{self.name:30}BROKEN", f"    {self.message}"]
        lines += [f"    {key} = {value!r}" for key, value in self.example.items()]
        return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class Report:
    """What `check_decomposition` found out; it prints as a table.

    Attributes:
        laws: one entry for each law that was tried.
    """

    laws: tuple[LawReport, ...]

    @property
    def broken(self) -> tuple[LawReport, ...]:
        """The laws that are broken."""
        return tuple(law for law in self.laws if law.verdict == "broken")

    @property
    def holds(self) -> bool:
        """Whether no law is broken."""
        return not self.broken

    def __str__(self) -> str:
        kept = sum(law.verdict == "holds" for law in self.laws)
        silent = len(self.laws) - kept - len(self.broken)
        end = f"{kept} hold, {len(self.broken)} broken, {silent} do not apply"
        return "\n".join([*(str(law) for law in self.laws), end])

    __repr__ = __str__


def check_decomposition(
    decompose: Callable[[Any, Any], Any],
    *,
    max_examples: int = 100,
    dtype: str = "float64",
    array: ToArray | None = None,
    skip: Collection[str] = (),
    orthonormal: bool = False,
    stacks: SearchStrategy | None = None,
    ranks: SearchStrategy | None = None,
) -> Report:
    """Try all laws of decompositions, and say which are broken, by which smallest example.

    The same function gives the same report each time. Requires the hypothesis package.

    Args:
        decompose: a function of a stack and ranks. It returns a stack or factors (u, core, v), and
            after them the relative error, if it reports one.
        max_examples: examples of each law.
        dtype: storage dtype of the stacks.
        array: a function that each NumPy array goes through, such as `torch.from_numpy`.
        skip: names of laws that the decomposition does not promise.
        orthonormal: whether it promises orthonormal factors U and V.
        stacks: a strategy of stacks; `strategies.lora_stacks` where left out.
        ranks: a strategy of ranks; pairs (r1, r2) where left out.

    Returns:
        A report that prints as a table.

    Raises:
        OptionError: skip names something that is no law.

    Examples:
        >>> from lotr_tn import hosvd
        >>> check_decomposition(hosvd, max_examples=10).holds
        True
    """
    options = LawOptions(dtype, array, stacks, ranks, orthonormal, skip)
    chosen = promised(options)
    return Report(tuple(_report(law, decompose, options, max_examples) for law in chosen))


def _report(
    law: Law, decompose: Callable[..., Any], options: LawOptions, max_examples: int
) -> LawReport:
    failing: dict[str, Any] = {}

    def test(**drawn: Any) -> None:
        try:
            law.check(decompose, arguments_of(drawn))
        except unittest.SkipTest:
            raise
        except Exception:  # the last one is the smallest
            failing.clear()
            failing.update(arguments_of(drawn))
            raise

    fixed = settings_for(max_examples, derandomize=True, database=None, report_multiple_bugs=False)
    try:
        fixed(given(**law.inputs(options))(test))()
    except unittest.SkipTest as reason:
        return LawReport(law.name, "does not apply", str(reason))
    except Exception as error:
        return LawReport(law.name, "broken", _sentence(error), failing)
    return LawReport(law.name, "holds")


def _sentence(error: Exception) -> str:
    if isinstance(error, Flaky):
        return "it does not fail each time on the same input"
    first = (str(error).splitlines() or [""])[0]
    return first if isinstance(error, AssertionError) else f"{type(error).__name__}: {first}"
