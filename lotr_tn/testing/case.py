"""A test case to inherit, for decompositions of one's own. Requires the hypothesis package."""

import unittest
from collections.abc import Callable, Collection
from typing import Any, ClassVar

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from lotr_tn.testing import laws, strategies
from lotr_tn.testing.promises import LAWS, Law, LawOptions, arguments_of, promised, settings_for
from lotr_tn.testing.strategies.formats import ToArray


class DecompositionLaws:
    """A test case with one test for each law of decompositions. Requires the hypothesis package.

    Inherit from it and write `decompose`; pytest (or unittest) collects the tests. Stacks and ranks
    are drawn, and a failure shows the smallest that break the law.

    Attributes:
        dtype: storage dtype of the stacks.
        array: a function that each NumPy array goes through, such as `torch.from_numpy`.
        max_examples: examples of each law; hypothesis' own setting where None.
        skip: names of laws that the decomposition does not promise.
        orthonormal: whether it promises orthonormal factors U and V.
        stacks: a strategy of stacks; `lora_stacks` where None.
        ranks: a strategy of ranks; pairs (r1, r2) where None.

    Examples:
        >>> from lotr_tn import hosvd
        >>> class TestMine(DecompositionLaws):
        ...     max_examples = 10
        ...
        ...     def decompose(self, stack, ranks):
        ...         return hosvd(stack, ranks)
        >>> TestMine().test_reported_error_is_true()
    """

    dtype: ClassVar[str] = "float64"
    array: ClassVar[ToArray | None] = None
    max_examples: ClassVar[int | None] = None
    skip: ClassVar[Collection[str]] = ()
    orthonormal: ClassVar[bool] = False
    stacks: ClassVar[SearchStrategy | None] = None
    ranks: ClassVar[SearchStrategy | None] = None

    def decompose(self, stack: Any, ranks: Any) -> Any:
        """Your decomposition: a stack, or factors (u, core, v), and then perhaps its error.

        The core is (L, r1, r2) and ΔW_l = u core_l vᵀ; the error is relative, ‖T − T̂‖ / ‖T‖.
        """
        raise NotImplementedError(f"{type(self).__name__} must define decompose(stack, ranks)")

    def similarity(self, a: Any, b: Any) -> float:
        """Your similarity of two stacks, where you have one: it must not depend on the gauge."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Make the tests anew for each class: hypothesis wants one class a test."""
        super().__init_subclass__(**keywords)
        if cls.decompose is not DecompositionLaws.decompose:
            options = LawOptions(
                cls.dtype, cls.array, cls.stacks, cls.ranks, cls.orthonormal, cls.skip
            )
            chosen = promised(options)
            for law in LAWS:
                if law in chosen:
                    cls._add_test(law.name, _decomposition_test(law), law.inputs(options))
                elif law.name in options.skip or hasattr(cls, f"test_{law.name}"):
                    cls._add_test(law.name, _skipped)
        if cls.similarity is not DecompositionLaws.similarity:
            pairs = strategies.stacks_of_one_shape(dtype=cls.dtype, array=cls.array)
            drawn = {"stacks": pairs, "seed": st.integers(0, 99)}
            cls._add_test("similarity_is_gauge_invariant", _similarity_test(), drawn)

    @classmethod
    def _add_test(
        cls, law: str, body: Callable, drawn: dict[str, SearchStrategy] | None = None
    ) -> None:
        """Add a test, unless the class or one that it inherits from has written its own."""
        name = f"test_{law}"
        if getattr(cls, name, body).__module__ != __name__:
            return
        if drawn is not None:
            body.__name__, body.__qualname__ = name, f"{cls.__qualname__}.{name}"
            body = settings_for(cls.max_examples)(given(**drawn)(body))
        setattr(cls, name, body)


def _skipped(self: DecompositionLaws) -> None:
    raise unittest.SkipTest("the class leaves this law out")


def _decomposition_test(law: Law) -> Callable:
    def test(self: DecompositionLaws, **drawn: Any) -> None:
        law.check(self.decompose, arguments_of(drawn))

    test.__doc__ = law.hold.__doc__
    return test


def _similarity_test() -> Callable:
    def test(self: DecompositionLaws, stacks: Any, seed: int) -> None:
        """A similarity of two stacks is the same for all factors of their updates."""
        laws.measure_is_gauge_invariant(self.similarity, stacks, seed)

    return test
