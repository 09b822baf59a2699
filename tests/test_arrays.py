import ml_dtypes
import numpy as np
import pytest
import torch

from lotr_tn import _arrays
from lotr_tn.errors import BackendError


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
