"""Which laws a decomposition of one's own is held to, and what they are held on."""

import unittest
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from lotr_tn.errors import OptionError
from lotr_tn.ops import convert
from lotr_tn.testing import laws, strategies
from lotr_tn.testing.laws.outcome import run
from lotr_tn.testing.strategies.formats import ToArray


@dataclass(frozen=True)
class LawOptions:
    """What stacks and ranks the laws are held on, and which laws."""

    dtype: str = "float64"
    array: ToArray | None = None
    stacks: SearchStrategy | None = None
    ranks: SearchStrategy | None = None
    orthonormal: bool = False
    skip: Collection[str] = ()

    def inputs(self) -> dict[str, SearchStrategy]:
        """Strategies for a stack and ranks."""
        given_stacks = strategies.lora_stacks(dtype=self.dtype, array=self.array)
        return {
            "stack": given_stacks if self.stacks is None else self.stacks,
            "ranks": strategies.ranks() if self.ranks is None else self.ranks,
        }

    def like_these(self) -> dict[str, SearchStrategy]:
        """A stack and ranks to take the kind from, where a law makes others; else nothing."""
        if self.stacks is None and self.ranks is None:
            return {}
        return {"like": st.tuples(*self.inputs().values())}


@dataclass(frozen=True)
class Law:
    """A law, what it is held on, and what a decomposition must report for it."""

    hold: Callable[..., None]
    inputs: Callable[[LawOptions], dict[str, SearchStrategy]] = LawOptions.inputs
    needs: str = ""  # error or certificate

    @property
    def name(self) -> str:
        """The law's name in `lotr_tn.testing.laws`."""
        return self.hold.__name__

    def check(self, decompose: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        """Hold the law on one example.

        Raises:
            AssertionError: it is broken.
            unittest.SkipTest: it speaks of something that the decomposition does not report.
        """
        __tracebackhide__ = True
        if self.needs:
            outcome = run(decompose, arguments["stack"], arguments["ranks"])
            if getattr(outcome, self.needs) is None:
                raise unittest.SkipTest(f"no {self.needs} is reported")
        self.hold(decompose, **arguments)


def _with_seed(options: LawOptions) -> dict[str, SearchStrategy]:
    return options.inputs() | {"seed": st.integers(0, 99)}


def _with_all_ranks(options: LawOptions) -> dict[str, SearchStrategy]:
    return options.like_these() or {"stack": options.inputs()["stack"]}


def _with_small_loss(options: LawOptions) -> dict[str, SearchStrategy]:
    return {"nearly": strategies.nearly_low_rank(array=options.array)} | options.like_these()


def arguments_of(drawn: dict[str, Any]) -> dict[str, Any]:
    """What was drawn, by the names that laws use."""
    if "nearly" not in drawn and "like" not in drawn:
        return drawn
    stack, ranks = drawn.get("like", (None, (1, 1)))
    if "nearly" in drawn:
        nearly, pair = drawn["nearly"]
        stack = nearly if stack is None else convert(nearly, type(stack))
    else:
        assert stack is not None
        pair = stack.shape[1:]
    return {"stack": stack, "ranks": max(pair) if isinstance(ranks, int) else pair}


LAWS = (
    Law(laws.result_fits_the_stack),
    Law(laws.rank_is_kept),
    Law(laws.exact_at_full_rank, _with_all_ranks),
    Law(laws.reported_error_is_true, needs="error"),
    Law(laws.small_errors_are_seen, _with_small_loss, needs="error"),
    Law(laws.bounds_bracket_the_error, needs="certificate"),
    Law(laws.error_is_nearly_the_best),
    Law(laws.larger_ranks_never_lose_more),
    Law(laws.twice_is_once),
    Law(laws.gauge_invariance, _with_seed),
    Law(laws.scaling_scales_the_result),
    Law(laws.layers_may_be_reordered),
    Law(laws.repeating_gives_the_same),
    Law(laws.input_is_left_alone),
    Law(laws.factors_are_orthonormal),
)


def promised(options: LawOptions) -> list[Law]:
    """The laws that the decomposition promises; an `OptionError` where `skip` names none."""
    known = [law.name for law in LAWS]
    for name in options.skip:
        if name not in known:
            raise OptionError(f"skip names no law: {name!r}; choose from {', '.join(known)}")
    out = set(options.skip) | (set() if options.orthonormal else {"factors_are_orthonormal"})
    return [law for law in LAWS if law.name not in out]


def settings_for(max_examples: int | None, **others: Any) -> settings:
    """Settings without a deadline, and without a phase that explains failures by lines of ours."""
    if max_examples is not None:
        others["max_examples"] = max_examples
    phases = (Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink)
    slow = [HealthCheck.too_slow]
    return settings(deadline=None, phases=phases, suppress_health_check=slow, **others)
