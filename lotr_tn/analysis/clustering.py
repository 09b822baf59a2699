"""Which layers belong together: the grouping of layers that stores least at a given error."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from lotr_tn._arguments import door
from lotr_tn.analysis.allocation import Menu
from lotr_tn.analysis.coordinates import Coordinates, coordinates_of
from lotr_tn.analysis.curve import Curve
from lotr_tn.analysis.curves import curves_of
from lotr_tn.analysis.forms import FORMS, FormatName
from lotr_tn.analysis.forms.truncated import FORM as ALONE
from lotr_tn.analysis.pareto import lower_hull, pareto_front
from lotr_tn.analysis.subspaces import Overlaps, common_energy, overlaps_of
from lotr_tn.formats import Stack
from lotr_tn.linalg.ranks import RelativeError, epsilon_of
from lotr_tn.ops.checks import refuse_gradient

LEAST_COMMON = 0.1
"""Share of their squared norms that sets of layers must have in common to be tried as one: with
less, sharing saves less than the cores cost."""

PAIRS = 8  # pairs of shared ranks tried for low-rank cores of a set; fewer than for a stack
NEVER = Menu(np.array([np.inf]), np.zeros(1))


def sharing() -> tuple[FormatName, ...]:
    """The forms in which layers share a side."""
    return tuple(name for name, form in FORMS.items() if form.shares)


@dataclass(frozen=True)
class Cluster:
    """Layers that are stored together.

    Attributes:
        layers: their places in the stack.
        format: the cheapest format for them; `truncated` for layers that share nothing.
        parameters: what they store.
    """

    layers: tuple[int, ...]
    format: FormatName
    parameters: int


@dataclass(frozen=True)
class Clustering:
    """A partition of the layers.

    Attributes:
        clusters: the clusters; those that share first, then the layers that do not.
        parameters: numbers stored by all.
        relative_error: of the whole stack.
    """

    clusters: tuple[Cluster, ...]
    parameters: int
    relative_error: float


@dataclass(frozen=True, eq=False)
class _Node:
    """A set of layers in the tree of merges, with the points at which it can be stored."""

    layers: tuple[int, ...]
    parts: "tuple[_Node, _Node] | None"
    formats: tuple[FormatName, ...]
    points: Menu  # parameters and squared loss

    @cached_property
    def corners(self) -> tuple[list[int], list[float], list[float], list[float]]:
        """The points that are best at some price, their costs and losses, and where each ends."""
        places = lower_hull(self.points.cost, self.points.loss)
        cost, loss = self.points.cost[places], self.points.loss[places]
        with np.errstate(divide="ignore", over="ignore"):  # no price is worth losing nothing less
            prices = (cost[1:] - cost[:-1]) / (loss[:-1] - loss[1:])
        return places.tolist(), cost.tolist(), loss.tolist(), prices.tolist()


_Choice: TypeAlias = tuple[_Node, int]
_Priced: TypeAlias = tuple[float, float, list[_Choice]]
_Way: TypeAlias = Callable[[_Node, float], _Priced]


@door
def cluster_layers(stack: Stack, rule: RelativeError) -> Clustering:
    """The partition of a stack's layers into clusters that stores least within an error.

    Layers are merged into a tree by the overlap of their subspaces (complete linkage). Every set of
    layers in the tree has its cost at every error, from the curves of all formats that share,
    unless its two parts have less than a tenth of their squared norms in common; a single layer
    has that of its own truncation. Of all ways to cut the tree, the cheapest is
    taken, for the price of an error at which the whole stack keeps to the one asked for; or all
    layers together, or every layer alone, where that takes less.

    Args:
        stack: any stack (L, m, n).
        rule: the Frobenius error allowed over the whole stack.

    Returns:
        The partition. Its cost is what the curves say, by the truncated HOSVD.

    Cost: O(Σ R_S³) over the sets S of the tree that are tried, R_S their rank terms: little where
    nothing is shared, some three times that of the whole stack's coordinates for a balanced tree,
    L/4 times it for one that adds layer by layer.
    Source: complete linkage, Defays (1977); the cut by dynamic programming over the tree.

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import LoRAStack, RelativeError
        >>> rng = np.random.default_rng(0)
        >>> u, w = rng.standard_normal((2, 60, 2))  # even layers write to u, odd ones to w
        >>> up = np.concatenate([u, w] * 4, axis=1)
        >>> stack = LoRAStack(up, rng.standard_normal((16, 9)), (2,) * 8)
        >>> found = cluster_layers(stack, RelativeError(0.01))
        >>> [(cluster.layers, cluster.format) for cluster in found.clusters]
        [((0, 2, 4, 6), 'shared-out'), ((1, 3, 5, 7), 'shared-out')]
    """
    refuse_gradient("cluster_layers", stack)
    epsilon = epsilon_of(rule)
    coordinates = coordinates_of(stack)
    curves = curves_of(coordinates, 0, sharing())
    return clusters_of(coordinates, overlaps_of(coordinates), curves, epsilon)


def clusters_of(
    coordinates: Coordinates,
    overlaps: Overlaps,
    curves: Mapping[FormatName, Curve],
    relative_error: float,
) -> Clustering:
    """The same for a stack that is in coordinates, with its overlaps and curves, already."""
    whole = [curves[name] for name in sharing() if name in curves]
    energy = coordinates.energy
    return _cheapest_cut(_tree(coordinates, overlaps, whole), relative_error**2 * energy, energy)


def _tree(coordinates: Coordinates, overlaps: Overlaps, whole: Sequence[Curve]) -> _Node:
    count = coordinates.shape[0]
    made = [_leaf(coordinates, layer) for layer in range(count)]
    if count == 1:
        return made[0]
    from scipy.cluster.hierarchy import linkage  # loaded when asked for

    affinity = (overlaps.left + overlaps.right) / 2
    upper = np.triu_indices(count, 1)
    steps = linkage(np.maximum(1 - affinity[upper], 0.0), method="complete")
    common = common_energy(coordinates)
    for left, right in steps[:, :2].astype(int):  # numbers from `count` on are earlier merges
        parts = made[left], made[right]
        layers = tuple(sorted(parts[0].layers + parts[1].layers))
        if len(layers) == count:
            made.append(_joined(layers, parts, whole))
        elif common[np.ix_(parts[0].layers, parts[1].layers)].mean() < LEAST_COMMON:
            made.append(_Node(layers, parts, ("",), NEVER))
        else:
            curves = curves_of(coordinates.take(layers), 0, sharing(), pairs=PAIRS)
            made.append(_joined(layers, parts, list(curves.values())))
    return made[-1]


def _leaf(coordinates: Coordinates, layer: int) -> _Node:
    """One layer by its own singular values; a rank term costs m + n."""
    _, m, n = coordinates.shape
    squares = coordinates.layer_values[layer] ** 2
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    terms = np.arange(len(tails))
    return _Node((layer,), None, (ALONE.name,) * len(tails), Menu(terms * (m + n), tails))


def _joined(layers: tuple[int, ...], parts: tuple[_Node, _Node], curves: Sequence[Curve]) -> _Node:
    """A set of layers with the best points of all formats."""
    parameters = np.concatenate([curve.parameters for curve in curves])
    lost = np.concatenate([curve.lost for curve in curves])
    names = [curve.format for curve in curves for _ in curve.parameters]
    kept = pareto_front(parameters, lost)
    formats = tuple(names[place] for place in kept)
    return _Node(layers, parts, formats, Menu(parameters[kept], lost[kept]))


def _cheapest_cut(root: _Node, allowed: float, energy: float) -> Clustering:
    """The cheapest of the cut for one price of lost energy, all layers together, and all alone."""
    cuts = [_within(root, way, allowed, energy) for way in (_cut, _together, _alone)]
    chosen = min(cuts, key=lambda cut: sum(float(n.points.cost[place]) for n, place in cut))
    sharing = [
        Cluster(node.layers, node.formats[place], int(node.points.cost[place]))
        for node, place in chosen
        if node.parts is not None
    ]
    sharing.sort(key=lambda cluster: cluster.layers)
    alone = [(node, place) for node, place in chosen if node.parts is None]
    if alone:
        layers = tuple(sorted(node.layers[0] for node, _ in alone))
        cost = int(sum(node.points.cost[place] for node, place in alone))
        sharing.append(Cluster(layers, ALONE.name, cost))
    lost = sum(float(node.points.loss[place]) for node, place in chosen)
    error = (lost / energy) ** 0.5 if energy else 0.0
    return Clustering(tuple(sharing), sum(c.parameters for c in sharing), error)


def _within(root: _Node, way: _Way, allowed: float, energy: float) -> list[_Choice]:
    """Bisect the price of lost energy until what is chosen for it loses what is allowed."""
    low, high = 0.0, 1.0
    scale = max(float(root.points.cost.max()), 1.0) / max(energy, 1e-300)
    while way(root, high * scale)[1] > allowed and high < 1e30:
        low, high = high, high * 4
    for _ in range(50):
        middle = (low + high) / 2
        if way(root, middle * scale)[1] > allowed:
            low = middle
        else:
            high = middle
    return _trimmed(way(root, high * scale)[2], allowed)


def _cut(node: _Node, price: float) -> _Priced:
    """The cut of least parameters + price·loss: that value, its loss, and what is chosen."""
    own = _together(node, price)
    if node.parts is None:
        return own
    apart = _sum(*(_cut(part, price) for part in node.parts))
    return own if own[0] <= apart[0] else apart


def _together(node: _Node, price: float) -> _Priced:
    """The same, of all layers as one set."""
    places, cost, loss, prices = node.corners
    at = bisect_left(prices, price)  # prices rise along a lower hull
    return cost[at] + price * loss[at], loss[at], [(node, places[at])]


def _alone(node: _Node, price: float) -> _Priced:
    """The same, of every layer alone."""
    if node.parts is None:
        return _together(node, price)
    return _sum(*(_alone(part, price) for part in node.parts))


def _sum(left: _Priced, right: _Priced) -> _Priced:
    return left[0] + right[0], left[1] + right[1], left[2] + right[2]


def _trimmed(chosen: list[_Choice], allowed: float) -> list[_Choice]:
    """Spend the loss that is left: cheaper points of the same clusters, best saving first."""
    places = [place for _, place in chosen]
    left = allowed - sum(float(node.points.loss[place]) for node, place in chosen)
    while True:
        best, saving = None, 0.0
        for index, (node, _) in enumerate(chosen):
            now = places[index]
            cost, loss = node.points.cost, node.points.loss
            within = int(np.searchsorted(-loss, -(loss[now] + left), "left"))
            saved = float(cost[now] - cost[within]) if within < now else 0.0
            if saved > saving:
                best, saving = (index, within), saved
        if best is None:
            return [(node, place) for (node, _), place in zip(chosen, places, strict=True)]
        index, within = best
        points = chosen[index][0].points
        left -= float(points.loss[within] - points.loss[places[index]])
        places[index] = within
