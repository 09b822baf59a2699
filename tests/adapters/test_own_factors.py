"""Updates of shared factors as LoRAs of their own."""

import warnings

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.adapters import Layout, LoTRGroup, Target
from lotr_tn.adapters.own_factors import own_factors
from lotr_tn.testing import laws


@pytest.mark.parametrize("size", [1.0, 1e25])
def test_factors_of_any_size_are_taken_apart_without_a_warning(size):
    rng = np.random.default_rng(0)
    u, core, v = (rng.standard_normal(shape) for shape in ((7, 3), (2, 3, 3), (5, 3)))
    parts = (size * u, core / size, v)
    stack = lt.Tucker2(*(x.astype(np.float32) for x in parts))
    group = LoTRGroup("q", tuple(Target(f"{i}.q", Layout(), 3) for i in range(2)), stack)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = own_factors(group)
    for module, wanted in zip(made, laws.dense_updates(stack), strict=True):
        found = module.up.astype(np.float64) @ module.down.astype(np.float64) * module.scale
        assert np.linalg.norm(found - wanted) <= 1e-6 * np.linalg.norm(wanted)
