"""A user's own test file, outside the package, finds the four classic mistakes."""

import os
import re
import subprocess
import sys

import pytest

FILE = """
import numpy as np

import lotr_tn as lt
from lotr_tn.testing import DecompositionLaws


class Laws(DecompositionLaws):
    max_examples = 15


def leading(matrices, rank):
    unfolding = np.concatenate(list(matrices), axis=1)
    return np.linalg.svd(unfolding, full_matrices=False)[0][:, :rank]


def hosvd(stack, ranks):
    w = lt.to_dense(stack)
    u, v = leading(w, ranks[0]), leading(w.mT, ranks[1])
    return u, u.T @ w @ v, v


class TestRight(Laws):
    def decompose(self, stack, ranks):
        return hosvd(stack, ranks)

    def similarity(self, a, b):
        return lt.cosine(a, b)


class TestTransposedCore(Laws):
    def decompose(self, stack, ranks):
        u, core, v = hosvd(stack, (min(ranks), min(ranks)))
        return (u, core.mT, v) if core.shape[1] == core.shape[2] else (u, core, v)


class TestSimilarityOfFactors(Laws):
    def similarity(self, a, b):
        x, y = (lt.convert(s, lt.LoRAStack).up for s in (a, b))
        overlap = np.linalg.norm(x.T @ y)
        return overlap / (np.linalg.norm(x) * np.linalg.norm(y) or 1.0)


class TestRankOneTooLarge(Laws):
    def decompose(self, stack, ranks):
        return hosvd(stack, (ranks[0] + 1, ranks[1] + 1))


class TestErrorByNorms(Laws):
    dtype = "float32"

    def decompose(self, stack, ranks):
        u, core, v = hosvd(stack, ranks)
        size = np.linalg.norm(lt.to_dense(stack))
        error = np.sqrt(max(size**2 - np.linalg.norm(core) ** 2, 0)) / (size or 1)
        return u, core, v, error
"""

BROKEN = {  # the test that must fail, and what it must say
    "TestTransposedCore::test_error_is_nearly_the_best": (
        r"the distance [\d.]+ is above [\d.e+-]+, which cutting singular values reaches"
    ),
    "TestTransposedCore::test_exact_at_full_rank": r"full ranks still lose [\d.]+ of the stack",
    "TestSimilarityOfFactors::test_similarity_is_gauge_invariant": (
        r"the number, by other factors of the same updates, is [\d.]+; found [\d.]+"
    ),
    "TestRankOneTooLarge::test_rank_is_kept": r"r1 may be 1 at most; found 2",
    "TestErrorByNorms::test_small_errors_are_seen": (
        r"the small relative error is [\d.]+e-0[56]; found (0|[\d.e-]+)"
    ),
}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What pytest prints about the file, in a folder that knows nothing of this repository."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "test_mine.py").write_text(FILE, encoding="utf-8")
    environment = os.environ | {"CI": "1", "COLUMNS": "100", "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("HYPOTHESIS_PROFILE", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "--tb=short", "test_mine.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def section(output, test):
    """What is printed about one failure."""
    title = re.escape(test.replace("::", "."))
    (found,) = re.findall(rf"^_+ {title} _+$(.*?)^(?:_+ \w|=+ )", output, re.DOTALL | re.MULTILINE)
    return found


def test_the_right_one_passes(output):
    assert "FAILED test_mine.py::TestRight" not in output
    assert "PASSED test_mine.py::TestRight::test_gauge_invariance" in output
    assert "PASSED test_mine.py::TestRight::test_similarity_is_gauge_invariant" in output


@pytest.mark.parametrize("test", BROKEN)
def test_a_mistake_is_found_and_explained(output, test):
    assert f"FAILED test_mine.py::{test}" in output
    assert re.search(f"AssertionError: {BROKEN[test]}", section(output, test))


@pytest.mark.parametrize("test", BROKEN)
def test_the_example_can_be_read(output, test):
    text = section(output, test)
    example = text.partition("Failing test case:")[2] or text.partition("Falsifying example:")[2]
    example = example.partition("Explanation:")[0]
    assert "LoRAStack(" in example or "stacks=" in example
    assert 0 < len(example) < 900
    assert re.search(r"ranks=\(\d, \d\)|nearly=|stacks=", example)
    numbers = re.findall(r"-?\d+\.\d*", example)
    assert 0 < len(numbers) < 30


def test_what_is_right_in_a_wrong_one_passes(output):
    for test in (
        "TestRankOneTooLarge::test_gauge_invariance",
        "TestTransposedCore::test_rank_is_kept",
        "TestErrorByNorms::test_error_is_nearly_the_best",
    ):
        assert f"PASSED test_mine.py::{test}" in output
