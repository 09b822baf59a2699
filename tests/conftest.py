"""Backends, real data and hypothesis profiles for all tests."""

import os
import shutil
from dataclasses import fields, replace
from pathlib import Path

import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from lotr_tn._arrays import Array

os.environ.setdefault("HF_HUB_OFFLINE", "1")
settings.register_profile(
    "dev", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(  # the same examples each time: more of them are for the nightly runs
    "ci", settings.get_profile("dev"), max_examples=15, derandomize=True, database=None
)
settings.register_profile("nightly", settings.get_profile("dev"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))
torch.set_num_threads(1)  # small matrices: threads would only wait for each other

BACKENDS = ("numpy", "read-only numpy", "array-api-strict", "torch")
LAW_BACKENDS = BACKENDS[1:]
"""Those of tables of laws: arrays that cannot be written in stand for those that can."""


def on_backend(x: np.ndarray, backend: str) -> Array:
    """A NumPy array moved to one of `BACKENDS`."""
    match backend:
        case "read-only numpy":
            x = x.copy()
            x.setflags(write=False)
            return x
        case "array-api-strict":
            return array_api_strict.asarray(x)
        case "torch":
            return torch.from_numpy(x.copy())
    return x


def stack_on(stack, backend: str):
    """A stack with every array moved to one of `BACKENDS`."""
    moved = {
        f.name: on_backend(getattr(stack, f.name), backend)
        for f in fields(stack)
        if isinstance(getattr(stack, f.name), np.ndarray)
    }
    return replace(stack, **moved)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn."""
    return request.param


def real_data() -> Path | None:
    """The folder of real adapters, where it is at hand."""
    named = os.environ.get("LOTR_REAL_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real adapters; tests that need it skip where it is absent."""
    folder = real_data()
    if folder is None:
        pytest.skip("real adapters not found: set LOTR_REAL_DATA to their folder")
    return folder


@pytest.fixture
def demo_adapter(tmp_path: Path) -> Path:
    """A copy of the adapter that comes with the package."""
    source = Path(__file__).parents[1] / "lotr_tn" / "demo" / "adapter"
    return Path(shutil.copytree(source, tmp_path / "demo-adapter"))
