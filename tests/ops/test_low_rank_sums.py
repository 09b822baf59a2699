"""Sums with low-rank cores: what is shared stays one, and every other format enters as it is."""

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.testing import laws

RNG = np.random.default_rng(0)
RANKS = (2, 0, 1)
U, V = RNG.standard_normal((7, 4)), RNG.standard_normal((6, 5))


def stack(u=U, v=V, seed=0):
    rng = np.random.default_rng(seed)
    up, down = rng.standard_normal((u.shape[1], 3)), rng.standard_normal((3, v.shape[1]))
    return lt.LowRankTucker2(u, up, down, v, RANKS)


OTHERS = {
    "both are shared": (stack(seed=1), (4, 5)),
    "u is shared": (stack(v=RNG.standard_normal((6, 2)), seed=1), (4, 7)),
    "v is shared": (stack(u=RNG.standard_normal((7, 3)), seed=1), (7, 5)),
    "nothing is shared": (stack(U.copy(), V.copy(), seed=1), (8, 10)),
}


@pytest.mark.parametrize("case", OTHERS)
def test_factors_that_are_the_same_stay_one(case):
    other, shared = OTHERS[case]
    total = stack() + other
    assert (total.shared_ranks, total.ranks) == (shared, (4, 0, 2))
    wanted = laws.dense_updates(stack()) + laws.dense_updates(other)
    assert np.allclose(laws.dense_updates(total), wanted, atol=1e-13)
    joined = lt.concat_layers([stack(), other, stack()])
    assert joined.ranks == RANKS * 3
    assert (joined.u is U, joined.v is V) == (other.u is U, other.v is V)
    parts = [laws.dense_updates(s) for s in (stack(), other, stack())]
    assert np.allclose(laws.dense_updates(joined), np.concatenate(parts), atol=1e-13)


WHOLE = {  # whole numbers, which move through products unrounded
    "LoRAStack": lt.LoRAStack(RNG.integers(-3, 4, (7, 4)) * 1.0, np.ones((4, 6)), (1, 0, 3)),
    "Tucker2": lt.Tucker2(U.round(), RNG.integers(-3, 4, (3, 4, 5)) * 1.0, V.round()),
    "Tucker2, wide core": lt.Tucker2(
        RNG.integers(-3, 4, (7, 5)) * 1.0, RNG.integers(-3, 4, (3, 5, 2)) * 1.0, np.ones((6, 2))
    ),
    "Tucker1 in": lt.Tucker1(np.ones((6, 2)), RNG.integers(-3, 4, (3, 7, 2)) * 1.0, "in"),
    "Tucker1 out": lt.Tucker1(np.ones((7, 2)), RNG.integers(-3, 4, (3, 6, 2)) * 1.0, "out"),
    "Dense": lt.Dense(RNG.integers(-3, 4, (3, 7, 6)) * 1.0),
}
RANKS_OF = {
    "LoRAStack": ((4, 4), (1, 0, 3)),
    "Tucker2": ((4, 5), (4,) * 3),
    "Tucker2, wide core": ((5, 2), (2,) * 3),
    "Tucker1 in": ((6, 2), (2,) * 3),
    "Tucker1 out": ((2, 6), (2,) * 3),
    "Dense": ((7, 6), (6,) * 3),
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_format_enters_without_rounding(name):
    found = lt.convert(WHOLE[name], lt.LowRankTucker2)
    assert (found.shared_ranks, found.ranks) == RANKS_OF[name]
    assert np.array_equal(laws.dense_updates(found), laws.dense_updates(WHOLE[name]))


def test_what_is_moved_is_not_copied():
    lora, tucker = WHOLE["LoRAStack"], WHOLE["Tucker2"]
    assert lt.convert(lora, lt.LowRankTucker2).u is lora.up
    assert lt.convert(tucker, lt.LowRankTucker2).v is tucker.v
    assert lt.convert(stack(), lt.LowRankTucker2).up.shape == (4, 3)
    taken = lt.take_layers(stack(), [2, 0, 2])
    assert taken.u is U
    assert taken.ranks == (1, 2, 1)


def test_singular_values_are_as_many_as_the_cores_have():
    found = lt.layer_singular_values(stack())
    assert [len(s) for s in found] == [2, 0, 1]
    assert lt.parameter_count(stack()) == 7 * 4 + 6 * 5 + 3 * (4 + 5)
    wide = lt.LowRankTucker2(U[:, :1], np.ones((1, 3)), np.ones((3, 5)), V, (3,))
    assert [len(s) for s in lt.layer_singular_values(wide)] == [1]


@pytest.mark.parametrize("nearness", [1e-3, 1e-7, 1e-11])
@pytest.mark.parametrize("to", [lt.LoRAStack, lt.Tucker2, lt.LowRankTucker2, lt.Tucker1, lt.Dense])
def test_small_distances_do_not_cancel(nearness, to):
    near = lt.LowRankTucker2(U, stack().up * (1 + nearness), stack().down, V, RANKS)
    wanted = nearness * float(lt.norm(stack()))
    found = float(lt.distance(stack(), lt.convert(near, to)))
    assert found == pytest.approx(wanted, abs=1e-14 * float(lt.norm(stack())) * 10)
