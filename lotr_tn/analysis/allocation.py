"""One choice for every group, so that the whole is best: least loss within a cost, or the reverse.

This is the multiple-choice knapsack problem. Its linear relaxation walks down the lower convex
hulls of all groups, steepest edge first, and bounds what any choice can reach; a greedy choice
reaches a value. Only points whose reduced cost is below the gap between both can belong to a better
choice; over those, exact dynamic programming decides.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lotr_tn.analysis.pareto import lower_hull, pareto_front
from lotr_tn.errors import OptionError
from lotr_tn.linalg.ranks import TIE

SLACK = 10 * TIE
"""By which costs may lie above a limit: those that are equal but for rounding count as one."""

STATES = 20_000  # partial choices kept at a time; beyond, the list is thinned and the bound tells


@dataclass(frozen=True, eq=False)
class Menu:
    """What one group can choose from."""

    cost: np.ndarray  # (P,) what a choice takes of the limit, at least 0
    loss: np.ndarray  # (P,) what it adds to the sum that is to be least, at least 0

    def front(self) -> "tuple[Menu, np.ndarray]":
        """The choices that no other one beats, cheapest first, and where they were."""
        kept = pareto_front(self.cost, self.loss)
        return Menu(self.cost[kept].astype(np.float64), self.loss[kept]), kept


@dataclass(frozen=True)
class Allocation:
    """One choice for every group."""

    picks: tuple[int, ...]  # for each group the place of its choice on its menu
    cost: float  # within the limit
    loss: float
    bound: float  # no choice within the limit has a smaller sum of losses


def allocate(menus: Sequence[Menu], limit: float) -> Allocation:
    """The choices of least total loss whose total cost is within a limit.

    To find the least cost within a loss, swap the two fields of every menu.

    Cost: O(P log P) for P points in all, and O(G·20000·p) where p points of each of G groups are
    left for the dynamic programme: milliseconds to a second.
    Accuracy: the best, unless more than 20000 partial choices had to be kept; `bound` holds always.
    Source: Sinha and Zoltners (1979) for the relaxation; Pisinger (1995) for the small core.
    """
    fronts, places = zip(*(menu.front() for menu in menus), strict=True)
    least = sum(float(front.cost[0]) for front in fronts)
    if least > limit * (1 + SLACK):
        raise OptionError(f"the cheapest choices together cost {least:g}, above {limit:g}")
    base, price, bound = _relaxed(fronts, limit)
    picks = _filled_up(fronts, base, limit)
    best = _refined(fronts, picks, limit, price, bound)
    loss = _loss(fronts, best)
    return Allocation(_at(places, best), cost_of(fronts, best), loss, max(0.0, min(bound, loss)))


def least_loss(menus: Sequence[Menu], limit: float) -> float:
    """What no choice within a limit goes below, by the relaxation; at least 0."""
    fronts = [menu.front()[0] for menu in menus]
    return max(0.0, _relaxed(fronts, limit)[2])


def hull_path(menus: Sequence[Menu]) -> list[tuple[int, ...]]:
    """The corners of the relaxation, cheapest first: each is the best that its own cost can buy."""
    fronts, places = zip(*(menu.front() for menu in menus), strict=True)
    current = [0] * len(fronts)
    path = [tuple(current)]
    for edge in _edges(fronts):
        current[edge.group] = edge.end
        path.append(tuple(current))
    return [_at(places, picks) for picks in path]


def _at(places: Sequence[np.ndarray], picks: Sequence[int]) -> tuple[int, ...]:
    """Where picks of fronts are on their menus."""
    return tuple(int(place[pick]) for place, pick in zip(places, picks, strict=True))


@dataclass(frozen=True)
class _Edge:
    """A step along the hull of one group's front."""

    group: int
    end: int
    cost: float
    gain: float

    @property
    def slope(self) -> float:
        """Loss saved for each unit of cost."""
        return self.gain / self.cost


def _edges(fronts: Sequence[Menu]) -> list[_Edge]:
    """All edges of all hulls, the ones that save most for their cost first."""
    edges = []
    for group, front in enumerate(fronts):
        corners = lower_hull(front.cost, front.loss)
        for a, b in itertools.pairwise(corners):
            step, gain = front.cost[b] - front.cost[a], front.loss[a] - front.loss[b]
            edges.append(_Edge(group, int(b), float(step), float(gain)))
    return sorted(edges, key=lambda edge: -edge.slope)  # stable: along a hull slopes fall


def _relaxed(fronts: Sequence[Menu], limit: float) -> tuple[list[int], float, float]:
    """Whole choices within the limit, loss saved per cost where it ends, and the lower bound."""
    picks = [0] * len(fronts)
    left = limit - sum(float(front.cost[0]) for front in fronts)
    loss = sum(float(front.loss[0]) for front in fronts)
    for edge in _edges(fronts):
        if edge.cost > left:
            return picks, edge.slope, loss - max(left, 0.0) * edge.slope
        picks[edge.group] = edge.end
        left -= edge.cost
        loss -= edge.gain
    return picks, 0.0, sum(float(front.loss[-1]) for front in fronts)


def _filled_up(fronts: Sequence[Menu], picks: list[int], limit: float) -> list[int]:
    """Spend what is left, each time where it saves most."""
    picks = list(picks)
    left = limit - cost_of(fronts, picks)
    while True:
        best, gain = None, 0.0
        for group, front in enumerate(fronts):
            within = int(np.searchsorted(front.cost, front.cost[picks[group]] + left, "right")) - 1
            saved = float(front.loss[picks[group]] - front.loss[within])
            if within > picks[group] and saved > gain:
                best, gain = (group, within), saved
        if best is None:
            return picks
        left -= float(fronts[best[0]].cost[best[1]] - fronts[best[0]].cost[picks[best[0]]])
        picks[best[0]] = best[1]


def _refined(
    fronts: Sequence[Menu], picks: list[int], limit: float, price: float, bound: float
) -> list[int]:
    """The best choice among points that can belong to a better one than `picks`.

    Reduced costs, above the least of the group, add up to how far a choice lies above the bound.
    """
    reached = _loss(fronts, picks)
    gap = reached - bound
    if gap <= 1e-9 * reached:
        return picks
    kept, reduced = [], []
    for front in fronts:
        own = front.loss + price * front.cost
        own = own - own.min()
        inside = np.flatnonzero(own <= gap)
        kept.append(inside)
        reduced.append(own[inside])
    found = _programme(fronts, kept, reduced, limit, gap)
    return picks if found is None or _loss(fronts, found) >= reached else found


def _programme(
    fronts: Sequence[Menu],
    kept: Sequence[np.ndarray],
    reduced: Sequence[np.ndarray],
    limit: float,
    gap: float,
) -> list[int] | None:
    """Dynamic programming over the groups; a state is what a partial choice costs and loses."""
    cost, loss, over = np.zeros(1), np.zeros(1), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    order = sorted(range(len(fronts)), key=lambda group: len(kept[group]))
    later = sum(float(fronts[group].cost[kept[group]].min()) for group in order)
    for group in order:
        own_cost, own_loss = fronts[group].cost[kept[group]], fronts[group].loss[kept[group]]
        later -= float(own_cost.min())
        states: list[tuple[np.ndarray, ...]] = []
        for choice in range(len(own_cost)):
            new = cost + own_cost[choice], loss + own_loss[choice], over + reduced[group][choice]
            fits = np.flatnonzero((new[0] + later <= limit * (1 + SLACK)) & (new[2] <= gap))
            states.append((*(x[fits] for x in new), fits, np.full(len(fits), choice)))
        new_cost, new_loss, new_over, parents, choices = (
            np.concatenate(parts) for parts in zip(*states, strict=True)
        )
        front = pareto_front(new_cost, new_loss)
        if len(front) > STATES:
            front = front[np.unique(np.linspace(0, len(front) - 1, STATES).round().astype(int))]
        if not len(front):
            return None
        cost, loss, over = new_cost[front], new_loss[front], new_over[front]
        trail.append((parents[front], choices[front]))
    state, picks = int(np.argmin(loss)), [0] * len(fronts)
    for group, (parents, choices) in zip(reversed(order), reversed(trail), strict=True):
        picks[group] = int(kept[group][choices[state]])
        state = int(parents[state])
    return picks


def cost_of(fronts: Sequence[Menu], picks: Sequence[int]) -> float:
    """What picks cost together."""
    return sum(float(front.cost[pick]) for front, pick in zip(fronts, picks, strict=True))


def _loss(fronts: Sequence[Menu], picks: Sequence[int]) -> float:
    return sum(float(front.loss[pick]) for front, pick in zip(fronts, picks, strict=True))
