"""The one door to LAPACK: finite or refused."""

import re
from pathlib import Path

import array_api_compat.numpy as xp
import numpy as np
import pytest

import lotr_tn
from lotr_tn._arrays import namespace_of
from lotr_tn.errors import FormatError
from lotr_tn.linalg import factor
from tests.linalg.test_linalg import on_backend

DOORS = {
    "qr": factor.qr,
    "svd": factor.svd,
    "singular_values": factor.singular_values,
    "eigh": factor.eigh,
    "eigh_descending": factor.eigh_descending,
    "eigenvalues": factor.eigenvalues,
    "pinv": factor.pinv,
    "inverse": factor.inverse,
    "cholesky": factor.cholesky,
    "triangle_of": factor.triangle_of,
}


@pytest.mark.parametrize("name", DOORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
def test_not_finite_is_refused_before(backend, name, bad):
    """NumPy's SVD of infinity would not return."""
    matrix = np.eye(5)
    matrix[1, 2] = matrix[2, 1] = bad
    x = on_backend(matrix, backend)
    with pytest.raises(FormatError, match="NaN or infinity"):
        DOORS[name](x, xp=namespace_of(x=x))


def test_a_singular_matrix_is_refused():
    with pytest.raises(FormatError, match="could not be factorised"):
        factor.inverse(np.zeros((2, 2)), xp=xp)
    assert factor.cholesky(-np.eye(2), xp=xp) is None


def test_there_is_no_other_door():
    """But for the checks for other packages, which are not to share what they check."""
    called = r"linalg\.(qr|svd|svdvals|eigh?|eigvalsh|pinv|inv|cholesky|solve|lstsq)\("
    root = Path(lotr_tn.__file__).parent
    found = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if re.search(called, path.read_text("utf-8")) and "testing" not in path.parts
    ]
    assert [name for name in found if name != "linalg/factor.py"] == []
