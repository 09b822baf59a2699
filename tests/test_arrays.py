import ml_dtypes
import numpy as np
import pytest
import torch

from lotr_tn import _arrays
from lotr_tn.errors import BackendError, FormatError


def test_mixed_libraries_are_named():
    with pytest.raises(BackendError, match=r"one library.*numpy.*torch"):
        _arrays.namespace_of(up=np.ones(3), down=torch.ones(3))


def test_mixed_dtypes_are_named():
    with pytest.raises(BackendError, match="up: float32, down: float64"):
        _arrays.namespace_of(up=np.ones(3, np.float32), down=np.ones(3))


def test_integers_are_refused():
    with pytest.raises(BackendError, match="w has dtype int64"):
        _arrays.namespace_of(w=np.ones(3, np.int64))


@pytest.mark.parametrize("dtype", _arrays.STORAGE_DTYPES)
def test_every_dtype_survives_the_way_to_torch_and_back(dtype):
    values = np.linspace(-3, 3, 20).reshape(4, 5).astype(getattr(ml_dtypes, dtype, None) or dtype)
    there = _arrays.from_numpy(values, backend="torch")
    assert _arrays.dtype_name(there) == dtype
    back = _arrays.to_numpy(there)
    assert back.dtype == values.dtype
    assert np.array_equal(back.astype(float), values.astype(float))


def test_bfloat16_rounds_as_torch_does():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    xp = _arrays.namespace_of(x=values)
    ours = _arrays.cast(values, "bfloat16", xp=xp).astype(np.float32)
    assert np.array_equal(ours, torch.from_numpy(values).bfloat16().float().numpy())


def test_unknown_backend_and_device_are_refused():
    with pytest.raises(BackendError, match="needed numpy or torch"):
        _arrays.from_numpy(np.ones(2), backend="jax")
    with pytest.raises(BackendError, match="choose backend torch"):
        _arrays.from_numpy(np.ones(2), backend="numpy", device="cuda")
    with pytest.raises(BackendError, match="torch cannot use device 'nowhere'"):
        _arrays.from_numpy(np.ones(2), backend="torch", device="nowhere")


def test_row_blocks_cover_every_row_once():
    x = np.empty((5000, 700), np.float32)
    rows = np.concatenate([np.arange(5000)[block] for block in _arrays.row_blocks(x)])
    assert np.array_equal(rows, np.arange(5000))


def test_a_scalar_without_a_device_is_on_the_host():
    """As those of NumPy 2.0 are."""
    assert _arrays.device_name(object()) == "cpu"


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.ones((2, 2)).view(np.matrix), "numpy.matrix"),
        (np.ma.masked_array(np.ones(3), [0, 1, 0]), "numpy.MaskedArray"),
        (np.ones(3).view(np.recarray), "numpy.recarray"),
    ],
    ids=["matrix", "masked", "recarray"],
)
def test_arrays_that_mean_something_else_are_refused_by_name(array, kind):
    for _ in range(2):  # the second time, its kind is known
        with pytest.raises(BackendError, match=f"up is a {kind}"):
            _arrays.namespace_of(up=array)


def test_a_mapped_array_is_a_plain_one(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 2)))
    assert _arrays.namespace_of(up=np.load(tmp_path / "x.npy", mmap_mode="r")) is not None


def test_what_is_no_array_is_refused():
    for wrong in (None, [1.0], torch.ones(2, 2).to_sparse()):
        with pytest.raises(BackendError):
            _arrays.namespace_of(up=np.ones(3) if isinstance(wrong, list) else wrong, down=wrong)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", _arrays.STORAGE_DTYPES)
def test_every_narrowing_holds_or_is_refused(dtype, backend):
    largest = _arrays.LARGEST[dtype]
    x = _arrays.from_numpy(np.array([largest, -1.0, 0.0]), backend=backend)
    xp = _arrays.namespace_of(x=x)
    assert _arrays.is_finite(_arrays.narrow(x, dtype, xp=xp))
    if dtype != "float64":
        with pytest.raises(FormatError, match=f"do not fit {dtype}, whose largest is"):
            _arrays.narrow(2 * x, dtype, xp=xp)
    for bad in (np.nan, np.inf):
        x = _arrays.from_numpy(np.array([1.0, bad]), backend=backend)
        with pytest.raises(FormatError):
            _arrays.narrow(x, dtype, xp=xp)


@pytest.mark.parametrize("dtype", _arrays.STORAGE_DTYPES)
def test_finite_is_seen_without_widening(dtype):
    kind = getattr(ml_dtypes, dtype, None) or dtype
    good = np.array([_arrays.LARGEST[dtype], 0.0, -1.0]).astype(kind)
    assert _arrays.is_finite(good)
    for bad in (np.nan, np.inf, -np.inf):
        assert not _arrays.is_finite(np.append(good, np.array([bad]).astype(kind)))
