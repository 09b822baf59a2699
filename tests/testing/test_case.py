"""The test case to inherit, and the report: what they hold, what they skip, how they shrink."""

import subprocess
import sys
import unittest
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn import testing
from lotr_tn.errors import OptionError
from lotr_tn.testing import DecompositionLaws, Report, check_decomposition, laws, strategies
from lotr_tn.testing.promises import LAWS
from tests.testing.budget import laws_in

FEW = 4
"""Examples: that the laws hold of these decompositions is shown elsewhere, by more of them."""


class TestHosvd(DecompositionLaws):
    max_examples = FEW
    orthonormal = True

    def decompose(self, stack, ranks):
        return lt.hosvd(stack, ranks)


class TestFactorsAndError(DecompositionLaws):
    """Bare factors, with an error beside them."""

    max_examples = FEW

    def decompose(self, stack, ranks):
        result = lt.st_hosvd(stack, ranks)
        return result.u, result.core, result.v, result.certificate.relative_error

    def similarity(self, a, b):
        return lt.cosine(a, b)


class TestFactorsAlone(DecompositionLaws):
    """Bare factors: the laws of reported errors do not apply."""

    max_examples = FEW
    dtype = "float32"

    def decompose(self, stack, ranks):
        result = lt.hosvd(stack, ranks)
        return result.u, result.core, result.v


class TestOnTorch(DecompositionLaws):
    max_examples = FEW
    array = torch.from_numpy

    def decompose(self, stack, ranks):
        assert isinstance(stack.up, torch.Tensor)
        return lt.hosvd(stack, ranks)


class TestOneRankForTucker1(DecompositionLaws):
    """Another format, with ranks and stacks of its own."""

    max_examples = FEW
    ranks = st.integers(1, 4)
    stacks = strategies.stacks()

    def decompose(self, stack, ranks):
        return lt.tucker1(stack, ranks)


class TestInherited(TestHosvd):
    """Tests are made anew, but for those written by hand and those left out."""

    orthonormal = False
    skip = ("larger_ranks_never_lose_more",)

    def test_twice_is_once(self):
        pass


def names(case):
    return {name for name in dir(case) if name.startswith("test_")}


def is_skipped(case, name):
    class Fresh(case):
        """Hypothesis wants one object a test."""

        max_examples = 1

    try:
        getattr(Fresh(), name)()
    except unittest.SkipTest:
        return True
    return False


def test_every_law_of_decompositions_is_tested():
    ours = {f"test_{law.name}" for law in LAWS}
    assert names(TestHosvd) == ours
    assert {law.hold for law in LAWS} | {laws.error_rule_is_met} == {
        getattr(laws, name) for name in laws_in(laws.truncation)
    }
    assert names(TestFactorsAndError) == (
        ours - {"test_factors_are_orthonormal"} | {"test_similarity_is_gauge_invariant"}
    )


def test_what_is_not_reported_is_skipped():
    skipped = {name for name in names(TestFactorsAlone) if is_skipped(TestFactorsAlone, name)}
    assert skipped == {
        "test_reported_error_is_true",
        "test_small_errors_are_seen",
        "test_bounds_bracket_the_error",
    }
    assert is_skipped(TestFactorsAndError, "test_bounds_bracket_the_error")


def test_what_is_left_out_is_skipped():
    assert is_skipped(TestInherited, "test_larger_ranks_never_lose_more")
    assert is_skipped(TestInherited, "test_factors_are_orthonormal")
    assert TestInherited.test_twice_is_once is TestInherited.__dict__["test_twice_is_once"]


def test_a_hand_written_test_is_inherited():
    class Heir(TestInherited):
        pass

    assert Heir.test_twice_is_once is TestInherited.test_twice_is_once
    assert Heir.test_gauge_invariance is not TestInherited.test_gauge_invariance


def test_a_law_that_is_none_is_refused():
    with pytest.raises(OptionError, match="skip names no law: 'twice'; choose from result_fits"):

        class Wrong(DecompositionLaws):
            skip = ("twice",)

            def decompose(self, stack, ranks):
                return None

    with pytest.raises(OptionError, match="skip names no law"):
        check_decomposition(lt.hosvd, skip=["twice"])


def test_a_class_without_a_decomposition_has_no_tests():
    class Base(DecompositionLaws):
        max_examples = 1

    assert names(Base) == set()
    with pytest.raises(NotImplementedError, match="Base must define decompose"):
        Base().decompose(None, None)


def test_unittest_runs_the_tests_too():
    class Both(DecompositionLaws, unittest.TestCase):
        max_examples = 3

        def decompose(self, stack, ranks):
            return lt.hosvd(stack, ranks)

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Both).run(result)
    assert result.wasSuccessful()
    assert result.testsRun == len(LAWS) - 1


def test_the_package_names_them_lazily():
    script = (
        "import sys\nfrom lotr_tn.testing import laws\nimport lotr_tn.testing as t\n"
        "assert 'hypothesis' not in sys.modules\n"
        "assert t.Report and 'hypothesis' in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = testing.nothing


def halved(stack, ranks):
    result = lt.hosvd(stack, ranks)
    return result.u, result.core / 2, result.v


def mirrored(stack, ranks):
    """The cores of a square pair of ranks transposed."""
    result = lt.hosvd(stack, ranks)
    core = np.swapaxes(result.core, 1, 2) if len(set(result.ranks)) == 1 else result.core
    return result.u, core, result.v


def one_too_many(stack, ranks):
    return lt.hosvd(stack, (ranks[0] + 1, ranks[1]))


def by_raw_factors(stack, ranks):
    """Directions of the first columns of up and rows of down."""
    u, v = np.linalg.qr(stack.up[:, : ranks[0]])[0], np.linalg.qr(stack.down[: ranks[1]].T)[0]
    return u, u.T @ lt.to_dense(stack) @ v, v


def favouring_the_first_layer(stack, ranks):
    return lt.hosvd(lt.scale(stack, [1.0] + [0.5] * (stack.shape[0] - 1)), ranks)


def cancelling(stack, ranks):
    result = lt.hosvd(stack, ranks)
    size, kept = (np.linalg.norm(x) for x in (lt.to_dense(stack), result.core))
    error = np.sqrt(max(size**2 - kept**2, 0)) / size if size else 0.0
    return result.u, result.core, result.v, error


def failing(stack, ranks):
    raise ZeroDivisionError("no reason\nat all")


def wrong_kind(stack, ranks):
    return [1, 2]


RNG = np.random.default_rng(0)


def unseeded(stack, ranks):
    result = lt.hosvd(stack, ranks)
    return result.u, result.core + RNG.standard_normal(), result.v


FAULTS = {
    "halved": (halved, "exact_at_full_rank"),
    "mirrored": (mirrored, "error_is_nearly_the_best"),
    "one too many": (one_too_many, "rank_is_kept"),
    "raw factors": (by_raw_factors, "gauge_invariance"),
    "first layer": (favouring_the_first_layer, "exact_at_full_rank"),
    "cancelling": (cancelling, "small_errors_are_seen"),
    "cancelling in float64": (cancelling, "reported_error_is_true"),
    "failing": (failing, "result_fits_the_stack"),
    "wrong kind": (wrong_kind, "result_fits_the_stack"),
    "unseeded": (unseeded, "repeating_gives_the_same"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_report_shows_a_small_example(fault):
    decompose, law = FAULTS[fault]
    others = [other.name for other in LAWS if other.name != law]
    report = check_decomposition(decompose, skip=others)
    (broken,) = report.broken
    assert not report.holds
    stack = broken.example["stack"]
    assert stack.shape[0] <= (3 if law == "reported_error_is_true" else 2)  # rounding has no least
    assert max(stack.shape) <= 4
    assert 0 < len(broken.message) < 200
    assert "\n" not in broken.message
    text = str(broken)
    assert text == repr(report).rpartition("\n")[0]
    assert len(text) < 600
    assert f"stack = {stack!r}" in text


def test_the_report_is_the_same_each_time():
    one, two = (str(check_decomposition(by_raw_factors, max_examples=10)) for _ in range(2))
    assert one == two
    assert "gauge_invariance              BROKEN\n    the error, by other factors" in one


def test_the_report_of_a_good_decomposition():
    report = check_decomposition(
        partial(lt.round, dtype="float32"),
        max_examples=FEW,
        dtype="float32",
        array=torch.from_numpy,
        stacks=strategies.tucker2s(dtype="float32", array=torch.from_numpy),
    )
    assert isinstance(report, Report)
    assert report.holds
    assert str(report).endswith(f"{len(LAWS) - 1} hold, 0 broken, 0 do not apply")


def test_a_decomposition_that_fails_only_once_is_named():
    calls = []

    def decompose(stack, ranks):
        calls.append(stack)
        if len(calls) == 3:
            raise ValueError("only now")
        return lt.hosvd(stack, ranks)

    others = [law.name for law in LAWS if law.name != "rank_is_kept"]
    (broken,) = check_decomposition(decompose, skip=others, max_examples=5).broken
    assert broken.message == "it does not fail each time on the same input"


def test_laws_without_a_report_do_not_apply():
    report = check_decomposition(by_raw_factors, max_examples=5)
    silent = [law.name for law in report.laws if law.verdict == "does not apply"]
    assert silent == [
        "reported_error_is_true",
        "small_errors_are_seen",
        "bounds_bracket_the_error",
    ]
    assert "bounds_bracket_the_error      does not apply (no certificate is reported)" in str(
        report
    )
    assert "broken, 3 do not apply" in str(report)


def test_other_exceptions_are_named():
    report = check_decomposition(failing, max_examples=3)
    assert {law.message for law in report.broken} == {"ZeroDivisionError: no reason"}
    assert len(report.broken) == len(LAWS) - 1


def test_a_result_of_another_kind_is_named():
    report = check_decomposition(wrong_kind, max_examples=3)
    assert "must return a stack or factors (u, core, v)" in report.broken[0].message
    assert "found list" in report.broken[0].message
