"""Clusters of layers: planted ones, the cost of every cluster made for real, and both extremes."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lotr_tn as lt
from lotr_tn.analysis.candidates import Subject, make_point
from lotr_tn.analysis.clustering import sharing
from lotr_tn.analysis.coordinates import coordinates_of
from lotr_tn.analysis.curve import best_point
from lotr_tn.analysis.curves import curves_of
from lotr_tn.analysis.forms import Options
from lotr_tn.errors import DerivativeError
from lotr_tn.testing import laws, strategies
from tests.analysis.planted import PLANTED, clustered, dense_of, lora, one_side, shared

HOSVD = Options(dtype="float64", method="hosvd")
ERRORS = [0.3, 0.1, 0.01, 1e-6]


def made(stack, cluster):
    """The layers of a cluster in its format at its size, made for real, and their dense layers."""
    part = lt.take_layers(stack, list(cluster.layers))
    subject = Subject.of(coordinates_of(part), lt.parameter_count(part), "float64", HOSVD)
    curve = subject.curves[cluster.format]
    (place,) = np.flatnonzero(curve.parameters == cluster.parameters)
    return make_point(part, subject, curve, place, HOSVD)


def extremes(stack, error):
    """What all layers take together by the cheapest curve, and each alone with its rank cut."""
    coordinates = coordinates_of(stack)
    curves = curves_of(coordinates, 0, (*sharing(), "truncated"))
    allowed = error**2 * coordinates.energy
    sizes = {}
    for name, curve in curves.items():
        place = best_point(curve, allowed)
        assert place is not None
        sizes[name] = int(curve.parameters[place])
    alone = sizes.pop("truncated")
    return min(sizes.values()), alone


@pytest.mark.parametrize(("error", "seed"), [*zip(ERRORS, itertools.cycle([0, 1]), strict=False)])
@pytest.mark.parametrize("name", PLANTED)
def test_the_partition_costs_what_it_says(name, error, seed):
    stack = PLANTED[name](seed)
    found = lt.analysis.cluster_layers(stack, lt.RelativeError(error))
    covered = sorted(layer for cluster in found.clusters for layer in cluster.layers)
    assert covered == list(range(stack.shape[0]))
    assert found.parameters == sum(cluster.parameters for cluster in found.clusters)
    assert found.relative_error <= error
    dense, lost = dense_of(stack), 0.0
    for cluster in found.clusters:
        part = made(stack, cluster)
        assert lt.parameter_count(part) == cluster.parameters
        lost += np.linalg.norm(dense[list(cluster.layers)] - laws.dense_updates(part)) ** 2
    measured = lost**0.5 / np.linalg.norm(dense)
    assert measured <= found.relative_error * (1 + 1e-9) + 1e-12
    assert measured >= 0.9 * found.relative_error - 1e-12
    together, alone = extremes(stack, error)
    assert found.parameters <= min(together, alone)


@given(seed=st.integers(0, 10**6), data=st.data())
def test_planted_clusters_are_found(seed, data):
    layers = data.draw(st.permutations(range(9)))
    cut = data.draw(st.integers(4, 5))
    sets = tuple(sorted(layers[:cut])), tuple(sorted(layers[cut:]))
    stack = clustered(seed, sets, (9, 37, 21))
    found = lt.analysis.cluster_layers(stack, lt.RelativeError(0.001))
    assert {cluster.layers for cluster in found.clusters} == set(sets)
    exact = sum(37 * 2 + 21 * 2 + 4 * len(members) for members in sets)
    assert found.parameters <= exact
    assert all(cluster.format in sharing() for cluster in found.clusters)


def test_layers_that_share_nothing_stay_alone():
    sets = ((0, 3, 4, 6),)
    stack = clustered(2, sets, (8, 37, 21))
    found = lt.analysis.cluster_layers(stack, lt.RelativeError(0.001))
    assert [cluster.layers for cluster in found.clusters] == [(0, 3, 4, 6), (1, 2, 5, 7)]
    assert found.clusters[1].format == "truncated"
    assert found.clusters[1].parameters == 4 * 2 * (37 + 21)
    unshared = lt.analysis.cluster_layers(
        lora(0, (5, 53, 47), (2, 2, 2, 2, 2)), lt.RelativeError(0.01)
    )
    assert [(c.layers, c.format) for c in unshared.clusters] == [((0, 1, 2, 3, 4), "truncated")]


def test_layers_that_share_stay_together():
    found = lt.analysis.cluster_layers(shared(0), lt.RelativeError(1e-6))
    assert [(c.layers, c.format) for c in found.clusters] == [(tuple(range(9)), "lotr")]
    assert found.parameters == 31 * 4 + 23 * 3 + 9 * 12
    outside = lt.analysis.cluster_layers(one_side(1, "out"), lt.RelativeError(1e-6))
    assert [(c.layers, c.format) for c in outside.clusters] == [(tuple(range(7)), "shared-out")]


@given(stack=strategies.stacks(), error=st.sampled_from(ERRORS))
def test_any_stack(stack, error):
    """Single layers, zero layers, rank 0 and ties."""
    found = lt.analysis.cluster_layers(stack, lt.RelativeError(error))
    covered = sorted(layer for cluster in found.clusters for layer in cluster.layers)
    assert covered == list(range(stack.shape[0]))
    assert found.relative_error <= error
    if not float(lt.norm(stack)):
        assert found.parameters == 0


def test_updates_whose_terms_cancel_take_nothing():
    shared, own = np.array([[2.0, -2], [-2, 2]]), np.array([[[2.0, 2], [1, 1], [-2, -2]]])
    cancelled = lt.Tucker1(shared, own, "out")
    assert lt.analysis.cluster_layers(cancelled, lt.RelativeError(0.3)).parameters == 0


def test_refusals():
    torch = pytest.importorskip("torch")
    with pytest.raises(DerivativeError, match="cluster_layers has no derivative"):
        lt.analysis.cluster_layers(
            lt.Dense(torch.ones(2, 3, 4, requires_grad=True)), lt.RelativeError(0.1)
        )
