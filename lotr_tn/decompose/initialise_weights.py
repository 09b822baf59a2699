"""Factors of pretrained weights, read one at a time, to train from, and the residual to freeze."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, final

import array_api_compat
import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import (
    UNIT_ROUNDOFF,
    Array,
    Namespace,
    device_name,
    dtype_name,
    float64,
    namespace_of,
    narrow,
    require_dtype,
    row_blocks,
    wants_gradient,
)
from lotr_tn.decompose.assemble import fix_signs
from lotr_tn.decompose.gauges import (
    GAUGES,
    Gauge,
    regauge,
    require_count,
    require_gauge,
    require_ranks,
    widened,
)
from lotr_tn.decompose.initialise import certificate_of
from lotr_tn.decompose.tucker import hooi
from lotr_tn.errors import BackendError, DerivativeError, FormatError, RankError
from lotr_tn.formats import Certificate, Dense, Tucker2
from lotr_tn.linalg.factor import pinv, qr
from lotr_tn.linalg.gram import cross_gram, wide_product
from lotr_tn.linalg.ranks import FixedRank, as_rule
from lotr_tn.ops.checks import require_layer
from lotr_tn.ops.frame import frame_of
from lotr_tn.ops.norms import root_sum_squares


class Matrices(Protocol):
    """L matrices (m, n), each made when it is asked for: a list, or a view of a file."""

    def __len__(self) -> int:
        """L."""
        ...

    def __getitem__(self, index: int, /) -> Array:
        """The matrix of a layer."""


@final
@dataclass(frozen=True, eq=False)
class WeightInitialisation:
    """Factors of pretrained weights; what they leave is made one layer at a time.

    Attributes:
        factors: what to train, with a certificate that has the error of each layer.
        relative_error: ‖residuals‖ / ‖weights‖ of all layers together, measured.
        weights: where `residual` reads a layer again.
    """

    factors: Tucker2
    relative_error: float
    weights: Dense | Matrices = field(repr=False)

    def residual(self, layer: int) -> Array:
        """W_l − U G_l Vᵀ (m, n), in the dtype of the weights: what stays frozen.

        It is computed in float64, and each entry rounded once. The weight is read again.

        Raises:
            FormatError: there is no such layer.
        """
        index, factors = require_layer(self.factors.shape[0], layer), self.factors
        reader = _WeightReader(self.weights)
        weight, xp = reader.load(index), reader.kind.xp
        blocks = _less(weight, factors.u, factors.core[index, ...], factors.v, xp=xp)
        return xp.concat([narrow(rest, reader.kind.dtype, xp=xp) for _, rest in blocks], axis=0)


@door
def initial_factors_of_weights(
    weights: Dense | Matrices,
    ranks: FixedRank | int | tuple[int, int],
    *,
    gauge: Gauge = "balanced",
    dtype: str | None = None,
    oversampling: int = 10,
    power_iterations: int = 2,
    seed: int = 0,
) -> WeightInitialisation:
    """The Tucker-2 of pretrained weights, which are read one layer at a time.

    A range finder seeks the leading k1 = r1 + `oversampling` output directions of all weights
    together and, in the same passes, the leading k2 input directions. The cores (k1, k2) of the
    weights in these directions are then decomposed exactly, by HOOI. A last pass takes the best
    cores for U and V as they are stored, and measures ‖W_l − U G_l Vᵀ‖ from the difference.

    Args:
        weights: a `Dense`, or L matrices (m, n) of one library, dtype and device: anything with
            a length that gives a matrix for an index, such as a list or a reader of a file. Each
            matrix is asked for `power_iterations` + 3 times, and let go before the next.
        ranks: one rank, or (r1, r2), from 1 to m and from 1 to n. With (m, n) the weights come
            back to rounding.
        gauge: how the factors share out the size of the weights: see `regauge`.
        dtype: storage dtype of the factors; that of the weights where left out.
        oversampling: directions sought beyond the ranks, at least 0.
        power_iterations: how often the directions are multiplied by the weights again, which
            turns them towards the large singular values; each is one more pass.
        seed: of the range finder. The same seed gives the same numbers in every library.

    Returns:
        Factors, their measured error, and `residual(layer)`, which reads one weight again.

    Raises:
        FormatError: no weight, one that is no matrix, has another shape, or is not finite.
        BackendError: weights that differ in library, dtype or device; no such dtype.
        RankError: a rank out of its range, or a rule that names no ranks.
        OptionError: an option out of its range.
        DerivativeError: torch would record what is done with a weight.

    Cost: with k for k1 and k2, L·m·n·k·(8·`power_iterations` + 10) flops. Memory: one weight,
    blocks of 2 MB of it and bases (m + n)·k in float64 a few times, and L·k1·k2 for the cores.
    Accuracy: let τ1 and τ2 be the tails of both unfoldings' singular values beyond r1 and r2; no
    Tucker-2 of these ranks loses less than the larger one. Without power iterations, and with an
    oversampling of p ≥ 2, the mean over seeds of the squared error is at most

        (2 + r1 / (p − 1)) τ1² + (2 + r2 / (p − 1)) τ2²,

    of which 1 + r / (p − 1) is what the range finder misses and 1 what the decomposition cuts off.
    Power iterations bring it near the exact HOOI. They square singular values: directions below
    1e-8 of the largest are rounding to them. A side with k = m (or n) misses nothing. Of the
    certificate's bounds the lower one knows only what the k directions hold, so it is low where
    singular values fall slowly; the upper one is the measured error, as a mean binds no seed.
    Source: Halko, Martinsson and Tropp (2011), algorithm 4.4 and theorem 10.5; for what stays
    frozen, Meng, Wang and Zhang (2024), PiSSA.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> weights = [rng.standard_normal((6, 5)) for _ in range(4)]
        >>> start = initial_factors_of_weights(weights, (6, 5))
        >>> start.factors.shape, start.relative_error < 1e-14
        ((4, 6, 5), True)
    """
    require_gauge(gauge, GAUGES)
    require_count("oversampling", oversampling)
    require_count("power_iterations", power_iterations)
    require_count("seed", seed)
    if dtype is not None:
        require_dtype(dtype)
    rule = as_rule(ranks)
    if not isinstance(rule, FixedRank):
        raise RankError(f"the ranks of weights must be given as numbers; found {rule}")
    reader = _WeightReader(weights)
    layers = range(reader.count)
    bases = _bases(_sketched(reader, i, rule.pair, oversampling, seed) for i in layers)
    for _ in range(power_iterations):
        bases = _bases(_powered(reader, i, bases) for i in layers)
    xp = reader.kind.xp
    inside = Dense(xp.stack([_core(reader, i, bases) for i in layers]))
    small = hooi(inside, rule, method="exact")
    gauged = regauge(widened(small, rule), gauge)
    u, v = (
        narrow(fix_signs(basis @ x, xp=xp), dtype or reader.kind.dtype, xp=xp)
        for basis, x in zip(bases, (gauged.u, gauged.v), strict=True)
    )
    factors = _last_pass(reader, u, v, certificate_of(small))
    return WeightInitialisation(factors, certificate_of(factors).relative_error, weights)


Pair: TypeAlias = tuple[Array, Array]
"""Something of the output side (m, k1), and of the input side (n, k2)."""


@dataclass(frozen=True)
class _Kind:
    """What all weights have in common."""

    xp: Namespace
    dtype: str
    device: str
    shape: tuple[int, int]


class _WeightReader:
    """Weights one at a time, checked against what those before had in common.

    Functions below that load one return something smaller: no loop holds two.
    """

    kind: _Kind

    def __init__(self, weights: Dense | Matrices) -> None:
        if isinstance(weights, Dense):
            weights = [weights.w[index, ...] for index in range(weights.shape[0])]  # views
        listed = hasattr(weights, "__len__") and hasattr(weights, "__getitem__")
        if not listed or isinstance(weights, dict | type) or getattr(weights, "ndim", 1) == 0:
            found = type(weights).__name__
            raise FormatError(f"weights must be a Dense or a sequence of matrices; found {found}")
        if len(weights) == 0:
            raise FormatError("weights must hold at least one matrix; found none")
        self.weights, self.count = weights, len(weights)

    def load(self, index: int) -> Array:
        """The weight of a layer."""
        weight = self.weights[index]
        xp = namespace_of(**{f"layer {index}": weight})
        if wants_gradient(weight):
            raise DerivativeError(
                f"initial_factors_of_weights has no derivative, and layer {index} requires one; "
                "detach the weights first"
            )
        shape = tuple(int(size) for size in weight.shape)
        if len(shape) != 2:
            raise FormatError(f"layer {index} must be a matrix (m, n); found shape {shape}")
        own = _Kind(xp, dtype_name(weight), device_name(weight), shape)
        if not hasattr(self, "kind"):
            self.kind = own
        kind = self.kind
        if shape != kind.shape:
            raise FormatError(
                f"all weights must have one shape; found {kind.shape} before and {shape} in "
                f"layer {index}"
            )
        if own != kind:
            first, other = (f"{k.xp.__name__}, {k.dtype}, {k.device}" for k in (kind, own))
            raise BackendError(
                "all weights must have one library, dtype and device; found "
                f"{first} before and {other} in layer {index}"
            )
        return weight


def _bases(parts: Iterable[Pair]) -> Pair:
    """Orthonormal bases of the sums over all layers, on both sides."""
    left, right = functools.reduce(lambda a, b: (a[0] + b[0], a[1] + b[1]), parts)
    xp = namespace_of(left=left, right=right)
    return qr(left, xp=xp)[0], qr(right, xp=xp)[0]


def _sketched(
    reader: _WeightReader, index: int, ranks: tuple[int, int], oversampling: int, seed: int
) -> Pair:
    """One weight and its transpose times random numbers, once it is found to be finite."""
    weight = reader.load(index)
    xp, (m, n) = reader.kind.xp, reader.kind.shape
    require_ranks(ranks, m, n)
    if not all(bool(xp.all(xp.isfinite(weight[rows, :]))) for rows in row_blocks(weight)):
        raise FormatError(f"weights must be finite; layer {index} has nan or infinite entries")
    rng = np.random.default_rng((seed, index))  # a layer's numbers are its own
    device = array_api_compat.device(weight)
    first, second = (
        xp.asarray(rng.standard_normal((far, min(rank + oversampling, near))), device=device)
        for rank, near, far in ((ranks[0], m, n), (ranks[1], n, m))
    )
    return wide_product(weight, first, xp=xp), cross_gram(weight, second, xp=xp)


def _powered(reader: _WeightReader, index: int, bases: Pair) -> Pair:
    """W Wᵀ times the left basis, and Wᵀ W times the right one."""
    weight, xp = reader.load(index), reader.kind.xp
    left, right = bases
    back = wide_product(weight, cross_gram(weight, left, xp=xp), xp=xp)
    return back, cross_gram(weight, wide_product(weight, right, xp=xp), xp=xp)


def _core(reader: _WeightReader, index: int, bases: Pair) -> Array:
    """The weight (k1, k2) in both bases."""
    weight, xp = reader.load(index), reader.kind.xp
    return xp.matrix_transpose(cross_gram(weight, bases[0], xp=xp)) @ bases[1]


def _last_pass(reader: _WeightReader, u: Array, v: Array, inside: Certificate) -> Tucker2:
    """The best cores for U and V as stored, and the distances of what is stored then."""
    xp = reader.kind.xp
    frame = frame_of(u, v, xp=xp)
    left, right = (pinv(x, xp=xp) for x in (frame.left_factor, frame.right_factor))

    def fitted(index: int) -> tuple[Array, Array, Array]:
        """One layer's core as stored, its distance and its norm."""
        weight = reader.load(index)
        inside = xp.matrix_transpose(cross_gram(weight, frame.left, xp=xp)) @ frame.right
        core = narrow(left @ inside @ xp.matrix_transpose(right), dtype_name(u), xp=xp)
        blocks = _less(weight, u, core, v, xp=xp)
        sizes = [(root_sum_squares(rest), root_sum_squares(block)) for block, rest in blocks]
        distance, norm = (root_sum_squares(xp.stack(part)) for part in zip(*sizes, strict=True))
        return core, distance, norm

    found = zip(*(fitted(index) for index in range(reader.count)), strict=True)
    core, distances, norms = (xp.stack(part) for part in found)
    rounding = 64 * UNIT_ROUNDOFF["float64"] * max(reader.kind.shape) ** 0.5
    # within some directions no more is lost than in all of them
    below = inside.lower - rounding * root_sum_squares(norms)
    lower, upper = xp.where(below > 0, below, 0 * below), root_sum_squares(distances)
    method = f"randomised {inside.method}"
    return Tucker2(u, core, v, Certificate(distances, norms, lower, upper, method, inside.sweeps))


def _less(w: Array, u: Array, core: Array, v: Array, *, xp: Namespace) -> Iterator[Pair]:
    """Blocks of rows of W, and of W − U G Vᵀ, in float64."""
    left, middle, right = (float64(x, xp=xp) for x in (u, core, v))
    inner = middle @ xp.matrix_transpose(right)
    for rows in row_blocks(w):
        block = float64(w[rows, :], xp=xp)
        yield block, block - left[rows, :] @ inner
