"""How alike many adapters of one base are: angles between updates, overlaps of their subspaces."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn._arguments import door
from lotr_tn.adapters.adapter import Adapter, Compressed, LoRAAdapter, LoRAGroup, LoRAModule
from lotr_tn.adapters.paths import require_common, shapes_of
from lotr_tn.analysis.forms import form_of
from lotr_tn.analysis.subspaces import NUMERICAL_ZERO
from lotr_tn.errors import CheckpointError, OptionError
from lotr_tn.linalg.factor import qr, svd
from lotr_tn.ops.arrays import common_namespace
from lotr_tn.ops.layers import layer_of, two_factors
from lotr_tn.ops.stacking import layer_in_hub

HELD_BYTES = 2**30  # bytes of factors held at a time; modules are gone through in that many passes
BLOCK_RANK = 256  # summed rank of the adapters that are multiplied with all others at a time
MOST_OPTIMAL = 300  # adapters up to which leaves are turned so that neighbours are most alike


@dataclass(frozen=True, eq=False)
class Likeness:
    """N adapters of one base, each with each.

    All of it depends on the updates ΔW alone, not on how they are written as products.

    Attributes:
        names: of the adapters, in the order given.
        norms: (N,) ‖A‖, the Frobenius norm over all modules.
        cosine: (N, N) ⟨A, B⟩ / (‖A‖·‖B‖) over all modules together, where a module that an adapter
            lacks counts as zero; nan for an adapter that is zero altogether.
        overlap_out: (N, N) overlaps of output subspaces: in each module the mean of the squared
            cosines of the principal angles, as in `Overlaps`, 1 where one subspace holds the other
            and 0 where they are orthogonal; of these the mean over the modules that both adapters
            update, with weights ‖A_k‖·‖B_k‖, as module k weighs in the cosine. nan where there is
            no such module.
        overlap_in: (N, N) of input subspaces.
        chance_out: (N, N) what random subspaces of the same ranks would have on the output side:
            the same mean of max(r_a, r_b) / m.
        chance_in: (N, N) on the input side, of max(r_a, r_b) / n.
        common: (N, N) how many modules both update.
        modules: the modules that any adapter has.
    """

    names: tuple[str, ...]
    norms: np.ndarray
    cosine: np.ndarray
    overlap_out: np.ndarray
    overlap_in: np.ndarray
    chance_out: np.ndarray
    chance_in: np.ndarray
    common: np.ndarray
    modules: tuple[str, ...]

    @property
    def chance(self) -> tuple[float, float]:
        """`chance_out` and `chance_in`, each the mean over all pairs that have a module in common.

        Both are nan where no pair has one.
        """
        pairs = np.triu(self.common > 0, 1)
        if not pairs.any():
            return float("nan"), float("nan")
        return float(self.chance_out[pairs].mean()), float(self.chance_in[pairs].mean())

    @property
    def order(self) -> tuple[int, ...]:
        """The places of the adapters in an order that has those that are alike side by side.

        The leaves of a tree by complete linkage of 1 - cosine (an adapter that is zero is at
        distance 1 from all), of up to 300 adapters in the order in which neighbours are closest
        together; the first adapter comes before the last.

        Source: Bar-Joseph, Gifford and Jaakkola (2001) for the order of the leaves.
        """
        from scipy.cluster.hierarchy import leaves_list

        order = [int(leaf) for leaf in leaves_list(self._tree)]
        ends = order.index(0), order.index(len(order) - 1)
        return tuple(order if ends[0] < ends[1] else reversed(order))

    def groups(self, least: float = 0.5) -> tuple[tuple[int, ...], ...]:
        """Groups of adapters of which every two have a cosine of at least `least`.

        A cut through the tree of `order`: each group is one stretch of that order. Adapters of
        different groups may have such a cosine too.

        Args:
            least: above 0 and at most 1.

        Raises:
            OptionError: it is not.
        """
        if not 0 < least <= 1:
            raise OptionError(
                f"the least cosine of a group must be above 0 and at most 1, such as 0.5; found "
                f"{least}"
            )
        from scipy.cluster.hierarchy import fcluster

        labels = fcluster(self._tree, 1 - least, criterion="distance")
        found: dict[int, list[int]] = {}
        for place in self.order:
            found.setdefault(int(labels[place]), []).append(place)
        return tuple(tuple(group) for group in found.values())

    @cached_property
    def _tree(self) -> np.ndarray:
        from scipy.cluster.hierarchy import linkage
        from scipy.spatial.distance import squareform

        apart = 1 - np.nan_to_num(self.cosine, nan=0.0)
        np.fill_diagonal(apart, 0.0)
        optimal = len(self.names) <= MOST_OPTIMAL
        return np.asarray(linkage(squareform(apart), "complete", optimal_ordering=optimal))


@dataclass(frozen=True)
class _Module:
    """A module of the base: its shape, who was first seen to update it, and what factors take."""

    shape: tuple[int, int]
    first: str
    bytes: int


@dataclass(frozen=True, eq=False)
class _Update:
    """One adapter's update of one module, whose factors are not read yet."""

    path: str
    shape: tuple[int, int]
    bytes: int
    factors: Callable[[], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class _Thin:
    """One update as left · diag(values) · rightᵀ, by its singular vectors, without null ones."""

    left: np.ndarray  # (m, k)
    values: np.ndarray  # (k,)
    right: np.ndarray  # (n, k)


@door
def compare_many(
    adapters: Mapping[str, Adapter], *, progress: Callable[[str], None] | None = None
) -> Likeness:
    """How alike adapters of one base are, each with each, from their factors.

    Args:
        adapters: two or more by name, LoRA or LoTR, of any ranks. They may lack modules that
            others have. An adapter may be read anew each time that it is looked up.
        progress: called with the name of each module before it is looked at.

    Returns:
        A `Likeness`.

    Raises:
        CheckpointError: fewer than two adapters, or a module whose shapes differ.

    Cost: in each module 2·(m + n)·R² flops for the N adapters' summed rank R, and
    O((m + n)·Σ r²) for their singular vectors. Memory of one module's factors of all adapters in
    float64, and of up to 1 GiB of factors that are held: each adapter is looked up once, and once
    more for each GiB that the factors of all adapters take.
    Accuracy: 1e-14 for cosines and overlaps. For the distance of two adapters that are nearly the
    same use `compare_adapters`, which does not cancel.
    Source: Björck and Golub (1973) for principal angles.

    Examples:
        >>> from pathlib import Path
        >>> import lotr_tn as lt
        >>> adapter = lt.load_adapter(Path(lt.__file__).parent / "demo" / "adapter")
        >>> half = lt.convert_adapter(adapter, lt.RelativeError(0.5)).adapter
        >>> lt.inspection.compare_many({"lora": adapter, "half": half}).cosine.round(2)
        array([[1.  , 0.87],
               [0.87, 1.  ]])
    """
    if len(adapters) < 2:
        raise CheckpointError(f"a likeness needs at least two adapters; found {len(adapters)}")
    found = _surveyed(adapters)
    sums = _Sums(len(adapters))
    for names in _passes(found):
        held = _held(adapters, names)
        for name in names:
            if progress is not None:
                progress(name)
            sums.add(found[name].shape, held.pop(name))
    return sums.likeness(tuple(adapters), tuple(found))


def modules_of(adapters: Mapping[str, Adapter]) -> dict[str, tuple[int, int]]:
    """The modules that any of the adapters has, with their shapes (m, n), which must agree."""
    return {name: module.shape for name, module in _surveyed(adapters).items()}


def _surveyed(adapters: Mapping[str, Adapter]) -> dict[str, _Module]:
    found: dict[str, _Module] = {}
    for name, adapter in adapters.items():
        before = {path: (module.first, module.shape) for path, module in found.items()}
        require_common(before, name, shapes_of(adapter), apart=True)
        for update in _updates(adapter):
            known = found.get(update.path, _Module(update.shape, name, 0))
            if known.shape != update.shape:
                (m, n), (p, q) = known.shape, update.shape
                raise CheckpointError(
                    f"module {update.path} is {m}x{n} in {known.first} and {p}x{q} in {name}; "
                    "needed adapters of one base"
                )
            found[update.path] = _Module(known.shape, known.first, known.bytes + update.bytes)
    return found


def _passes(modules: Mapping[str, _Module]) -> Iterator[list[str]]:
    """Modules whose factors are held at a time."""
    names: list[str] = []
    held = 0
    for name, module in modules.items():
        if names and held + module.bytes > HELD_BYTES:
            yield names
            names, held = [], 0
        names.append(name)
        held += module.bytes
    if names:
        yield names


def _held(
    adapters: Mapping[str, Adapter], names: Sequence[str]
) -> dict[str, dict[int, tuple[np.ndarray, np.ndarray]]]:
    """The factors of some modules, of every adapter that has them, by the adapter's place."""
    held: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {name: {} for name in names}
    for place, adapter in enumerate(adapters.values()):
        for update in _updates(adapter):
            if update.path in held:
                held[update.path][place] = update.factors()
    return held


def _updates(adapter: Adapter) -> Iterator[_Update]:
    """An adapter's updates, as left (m, r) and right (n, r) factors once they are asked for."""
    groups = (
        [LoRAGroup("", adapter.modules)]
        if isinstance(adapter, LoRAAdapter)
        else adapter.groups.values()
    )
    for group in groups:
        if isinstance(group, LoRAGroup):
            yield from map(_update_of_module, group.modules)
            continue
        form, (m, n) = form_of(group.stack), group.stack.shape[1:]
        for index, target in enumerate(group.targets):
            size = 8 * (m + n) * form.width(group.stack, index)
            read = partial(_factors_of_layer, group.stack, index)
            yield _Update(target.name, (m, n), size, read)


def _update_of_module(module: LoRAModule) -> _Update:
    def factors() -> tuple[np.ndarray, np.ndarray]:
        up, down = module.factors()
        return up, down.T

    wide = "float64" in (module.up.dtype.name, module.down.dtype.name)
    size = (8 if wide else 4) * module.down.shape[0] * sum(module.shape)
    return _Update(module.target.name, module.shape, size, factors)


def _factors_of_layer(stack: Compressed, index: int) -> tuple[np.ndarray, np.ndarray]:
    """A layer's factors in float64, with its core on the side that makes them narrow."""
    xp = common_namespace(stack)
    return two_factors(layer_of(*layer_in_hub(stack, index), xp=xp), xp=xp)


def _thin(left: np.ndarray, right: np.ndarray) -> _Thin:
    """The singular value decomposition of left rightᵀ, without what is only rounding."""
    q, r = qr(left, xp=xp)
    p, s = qr(right, xp=xp)
    u, values, vt = svd(r @ s.T, xp=xp)
    rank = int((values > NUMERICAL_ZERO * values.max(initial=0.0)).sum())
    return _Thin(q @ u[:, :rank], values[:rank], p @ vt[:rank].T)


class _Sums:
    """Sums over modules for each pair of adapters; what lies below the diagonals means nothing."""

    def __init__(self, count: int) -> None:
        self.squares = np.zeros(count)
        self.dots = np.zeros((count, count))
        self.overlaps = np.zeros((2, count, count))
        self.chances = np.zeros((2, count, count))
        self.weights = np.zeros((count, count))
        self.common = np.zeros((count, count), dtype=int)

    def add(
        self, shape: tuple[int, int], factors: dict[int, tuple[np.ndarray, np.ndarray]]
    ) -> None:
        """Add one module: the factors of the adapters that have it, which are used up."""
        thin = {place: _thin(*factors.pop(place)) for place in sorted(factors)}
        thin = {place: found for place, found in thin.items() if found.values.size}
        if not thin:
            return
        places = np.array(list(thin))
        values = np.concatenate([found.values for found in thin.values()])
        sides = [
            np.concatenate([found.left for found in thin.values()], axis=1),
            np.concatenate([found.right for found in thin.values()], axis=1),
        ]
        ranks = np.array([found.values.size for found in thin.values()])
        del thin
        starts = np.cumsum(ranks) - ranks
        squares = np.add.reduceat(values**2, starts)
        norms = np.sqrt(squares)
        self.squares[places] += squares
        for rows in _blocks(ranks):
            pairs = np.ix_(places[rows], places[rows.start :])
            begin, end = starts[rows.start], starts[rows.stop - 1] + ranks[rows.stop - 1]
            across = [side[:, begin:end].T @ side[:, begin:] for side in sides]
            weighed = across[0] * across[1] * values[begin:end, None] * values[begin:]
            parts = starts[rows] - begin, starts[rows.start :] - begin
            self.dots[pairs] += _sums_of_parts(weighed, parts)
            weights = norms[rows, None] * norms[rows.start :]
            self.weights[pairs] += weights
            self.common[pairs] += 1
            least = np.minimum(ranks[rows, None], ranks[rows.start :])
            most = np.maximum(ranks[rows, None], ranks[rows.start :])
            for side, size in enumerate(shape):
                cosines = _sums_of_parts(across[side] ** 2, parts)
                self.overlaps[side][pairs] += weights * np.minimum(cosines / least, 1.0)
                self.chances[side][pairs] += weights * (most / size)

    def likeness(self, names: tuple[str, ...], modules: tuple[str, ...]) -> Likeness:
        """What the sums say."""
        norms, weights = np.sqrt(self.squares), _mirrored(self.weights)
        sizes = np.where(norms > 0, norms, np.nan)
        weights = np.where(weights > 0, weights, np.nan)
        cosine = np.clip(_mirrored(self.dots) / (sizes * sizes[:, None]), -1.0, 1.0)
        out, into = np.minimum(_mirrored(self.overlaps) / weights, 1.0)
        for matrix in (cosine, out, into):
            np.fill_diagonal(matrix, np.where(norms > 0, 1.0, np.nan))
        random_out, random_in = _mirrored(self.chances) / weights
        common = _mirrored(self.common)
        return Likeness(names, norms, cosine, out, into, random_out, random_in, common, modules)


def _blocks(ranks: np.ndarray) -> Iterator[slice]:
    """Stretches of adapters whose ranks sum to about `BLOCK_RANK`, and at least one adapter."""
    start, total = 0, 0
    for index, rank in enumerate(ranks):
        if index > start and total + rank > BLOCK_RANK:
            yield slice(start, index)
            start, total = index, 0
        total += rank
    yield slice(start, len(ranks))


def _sums_of_parts(x: np.ndarray, starts: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The sums of the blocks of a matrix, by where they begin on both axes."""
    return np.add.reduceat(np.add.reduceat(x, starts[1], axis=1), starts[0], axis=0)


def _mirrored(x: np.ndarray) -> np.ndarray:
    """The symmetric matrices that have the upper triangles of these."""
    return np.triu(x) + np.swapaxes(np.triu(x, 1), -1, -2)
