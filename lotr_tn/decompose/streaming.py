"""Shared bases of a stack that is seen one block of layers at a time.

Of layers that come in blocks, three things are kept: an orthonormal basis for each side, the
layers' coordinates in both, and how much of each layer lies outside of them, measured.

Updated bases take one pass: `grow` only appends columns, so coordinates of earlier blocks stay
valid, and `joined` fills them up with zeros. Sketched bases take two: `Sketch`, then `project`.
With k columns and blocks of R_b terms, no array holds more than (m + n)·(k + R_b) numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import Array, Namespace, dtype_name, is_wide, namespace_of, to_numpy, zeros
from lotr_tn.decompose.block_terms import (
    block_terms,
    by_layer,
    layer_squares,
    layer_triangles,
    on_device,
    one_for_each,
)
from lotr_tn.errors import FormatError, OptionError
from lotr_tn.formats import LoRAStack, LowRankTucker2
from lotr_tn.formats.checks import require_axes
from lotr_tn.linalg.factor import eigh_descending, qr, svd

FLOORS = {True: 1e-14, False: 2.0**-20}
"""Relative size below which a residual is rounding, for float64 and for narrower factors. That is
90 roundings of 1.1e-16, and 16 of 6e-8: a product over k columns adds up about √k of them, and a
direction found from little of itself carries those of all others."""

SPLIT_AGAIN = 1e-12
"""Squared share of a column below which its residual is cleared of rounding by a second pass."""

GRAM_UP_TO = 1e9
"""Energy, in units of what may be left out, up to which the Gram matrix finds directions: it
resolves 1e-16 of that. Beyond, an SVD is taken."""

ROUNDS = 4
"""How often one side looks for directions of a block. The first time finds all up to rounding."""

SMALLEST_ROOM = 16


@dataclass(frozen=True, eq=False)
class Bases:
    """Orthonormal bases of both sides of a stack.

    Attributes:
        left: (m, k1) float64 with orthonormal columns, the output side; k1 may be 0.
        right: (n, k2) float64 with orthonormal columns, the input side; k2 may be 0.

    Growing appends to spare room where there is some, so the arrays of earlier bases are views of
    the same memory: never write to them.

    Raises:
        FormatError: an array has not two axes, or is not float64.
        BackendError: library or device differ.
    """

    left: Array
    right: Array
    _rooms: "tuple[_Room, _Room] | None" = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        namespace_of(left=self.left, right=self.right)
        require_axes("left", self.left, "(m, k1)")
        require_axes("right", self.right, "(n, k2)")
        if not is_wide(self.left):
            raise FormatError(
                f"bases must be float64, found {dtype_name(self.left)}; widen them and "
                "orthonormalise again"
            )

    @classmethod
    def empty(cls, m: int, n: int, *, like: Array | None = None) -> "Bases":
        """Bases without columns, in the library and on the device of `like`; NumPy without."""
        like = np.empty(0) if like is None else like
        xp = namespace_of(like=like)
        return cls(zeros((m, 0), like, xp=xp), zeros((n, 0), like, xp=xp))

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return int(self.left.shape[0]), int(self.right.shape[0])

    @property
    def ranks(self) -> tuple[int, int]:
        """(k1, k2)."""
        return int(self.left.shape[1]), int(self.right.shape[1])


@dataclass(frozen=True, eq=False)
class Block:
    """A block of b layers in the coordinates of bases: ΔW_l = left up_l down_l rightᵀ + outside.

    Attributes:
        up: (k1, R_b) float64, the layers' output coordinates side by side.
        down: (R_b, k2) float64, the input coordinates one below the other.
        ranks: (r_1, …, r_b) of the layers.
        missed: (b,) ‖ΔW_l − left up_l down_l rightᵀ‖², the squared norm outside the bases. A sum
            of squares of residuals, to 1e-15 of Σ_j ‖x_j‖²‖y_j‖² over the layer's rank terms.
        norms: (b,) ‖ΔW_l‖², as accurate.
    """

    up: Array
    down: Array
    ranks: tuple[int, ...]
    missed: Array
    norms: Array


@door
def grow(
    bases: Bases, block: LoRAStack, allowed: Sequence[float] | Array, *, most: int | None = None
) -> tuple[Bases, Block]:
    """Bases that hold every layer of a block to within its allowed error, and the block in them.

    On either side nothing is added where all layers are within half of what is allowed; else the
    fewest leading singular vectors of the residuals, each layer divided by the error it is
    allowed. What the left side leaves over of its half, the right side may use.

    Args:
        bases: those so far; `Bases.empty` to begin with. They stay as they are.
        block: some layers (b, m, n), any storage dtype; widened to float64 here.
        allowed: (b,) squared norms that may be left out of the layers. With 0 nothing is lost but
            rounding: whatever is allowed, a side never looks for a residual below 1e-14 of a
            layer (float64 factors) or 1e-6 of it (narrower ones), relative to the root of
            Σ_j ‖x_j‖²‖y_j‖² over its rank terms. It is the rounding of such factors.
        most: columns that a side may grow to; no limit where left out. Where it keeps an error from
            being met, `missed` is larger than allowed, and true.

    Returns:
        The grown bases, whose first columns are the given ones, and the block.

    Raises:
        FormatError: the block's sizes are not those of the bases, or it holds NaN or infinity.
        OptionError: `allowed` has not b numbers of at least 0, or `most` is negative.
        BackendError: library or device differ.
        DerivativeError: torch would record the decomposition.

    Cost: 4·(m + n)·k·R_b flops (8 where residuals are near rounding), O((m + n)·R_b·r) to weigh and
    measure, and O((m + n)·R_b²) where directions are added; memory O((m + n)·(k + R_b)). Layers
    of ragged ranks cost as if all had the largest. Room for new columns is doubled when it is full.
    Accuracy: columns are orthonormal to 1e-14, however many blocks have been seen. A direction that
    is first seen at a share s of a layer is known to rounding / s, and where nothing may be lost
    it may take a second column once a layer is strong along it.
    Source: Brand (2006), Fast low-rank modifications of the thin SVD, without its rotation of
    what is held; Kahan and Parlett on orthogonalising twice (Parlett, 1998, section 6.9).

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import LoRAStack
        >>> rng = np.random.default_rng(0)
        >>> u, v = rng.standard_normal((30, 2)), rng.standard_normal((20, 3))
        >>> bases = Bases.empty(30, 20)
        >>> for _ in range(5):
        ...     up, down = u @ rng.standard_normal((2, 4)), rng.standard_normal((4, 3)) @ v.T
        ...     bases, block = grow(bases, LoRAStack(up, down, (2, 2)), allowed=(0, 0))
        >>> bases.ranks
        (2, 3)
    """
    limits = one_for_each("allowed", allowed, block.shape[0])
    if most is not None and most < 0:
        raise OptionError(f"most must be at least 0 columns; found {most}")
    return _coordinates(bases, block, limits, most)


@door
def project(bases: Bases, block: LoRAStack) -> Block:
    """A block in bases that stay as they are, with what lies outside measured.

    Arguments, errors, cost and accuracy as for `grow`, where nothing is added.
    """
    return _coordinates(bases, block, np.full(block.shape[0], np.inf), 0)[1]


@door
def joined(bases: Bases, blocks: Sequence[Block]) -> tuple[LowRankTucker2, Array]:
    """All layers of blocks in the last bases.

    Args:
        bases: the last ones.
        blocks: in layer order; each from these bases or from ones that these have grown from.

    Returns:
        The layers, R rank terms in float64, and the squared norm that each misses, (L,).

    Raises:
        FormatError: there is no block, or one has more coordinates than the bases have columns.
    """
    if not blocks:
        raise FormatError("needed at least one block of layers; found none")
    xp = namespace_of(left=bases.left, **{f"block {i}": b.up for i, b in enumerate(blocks)})
    total = sum(int(block.up.shape[1]) for block in blocks)
    up = zeros((bases.ranks[0], total), bases.left, xp=xp)
    down = zeros((total, bases.ranks[1]), bases.left, xp=xp)
    start = 0
    for index, block in enumerate(blocks):
        held = int(block.up.shape[0]), int(block.down.shape[1])
        if held[0] > bases.ranks[0] or held[1] > bases.ranks[1]:
            raise FormatError(
                f"block {index} has {held[0]} by {held[1]} coordinates, the bases "
                f"{bases.ranks[0]} by {bases.ranks[1]} columns: join with the last bases"
            )
        stop = start + int(block.up.shape[1])
        up[: held[0], start:stop] = block.up
        down[start:stop, : held[1]] = block.down
        start = stop
    ranks = tuple(rank for block in blocks for rank in block.ranks)
    missed = xp.concat([block.missed for block in blocks])
    return LowRankTucker2(bases.left, up, down, bases.right, ranks), missed


def _coordinates(
    bases: Bases, block: LoRAStack, allowed: np.ndarray, most: int | None
) -> tuple[Bases, Block]:
    """The block in bases that have grown as far as it needs and `most` allows."""
    terms, layers = block_terms(block, bases.shape), len(block.ranks)
    xp = namespace_of(left=bases.left, right=bases.right, up=terms.x)
    floors = np.maximum(FLOORS[terms.wide] ** 2 * terms.sizes, np.finfo(np.float64).tiny)
    rooms = bases._rooms or (None, None)

    weights = layer_triangles(by_layer(terms.y, layers, xp=xp), terms.wide, xp=xp)
    limits = np.maximum(allowed / 2, floors)
    left = _grown(bases.left, rooms[0], terms.x, terms.x_squares, weights, limits, most, xp=xp)
    inside = by_layer(left.inside, layers, xp=xp)
    kept = layer_squares(inside @ xp.matrix_transpose(weights), xp=xp)

    weights = layer_triangles(inside, terms.wide, xp=xp)
    limits = np.maximum(np.maximum(allowed - to_numpy(left.missed), allowed / 2), floors)
    right = _grown(bases.right, rooms[1], terms.y, terms.y_squares, weights, limits, most, xp=xp)

    up, down = left.inside, xp.matrix_transpose(right.inside)
    if terms.own is not None:
        up, down = xp.take(up, terms.own, axis=1), xp.take(down, terms.own, axis=0)
    grown = Bases(left.basis, right.basis)
    object.__setattr__(grown, "_rooms", (left.room, right.room))
    missed = left.missed + right.missed
    return grown, Block(up, down, block.ranks, missed, kept + left.missed)


@dataclass(frozen=True)
class _Grown:
    """One side of a block in a basis that has grown to hold it."""

    basis: Array  # (m, k)
    room: "_Room | None"
    inside: Array  # (k, b·r)
    missed: Array  # (b,)


def _grown(
    basis: Array,
    room: "_Room | None",
    x: Array,
    x_squares: Array,
    weights: Array,
    limits: np.ndarray,
    most: int | None,
    *,
    xp: Namespace,
) -> _Grown:
    """Append directions of the residual of x until ‖rest_l T_lᵀ‖² ≤ limit_l, or no room is left."""
    highest = int(basis.shape[0])
    inside, rest = _split(basis, x, None, x_squares, xp=xp)
    for rounds_left in range(ROUNDS, -1, -1):
        weighed = by_layer(rest, int(limits.shape[0]), xp=xp) @ xp.matrix_transpose(weights)
        missed = layer_squares(weighed, xp=xp)
        spare = (highest if most is None else min(most, highest)) - int(basis.shape[1])
        if not rounds_left or spare <= 0 or (to_numpy(missed) <= limits).all():
            return _Grown(basis, room, inside, missed)
        new = _directions(weighed, limits, spare, xp=xp)
        for _ in range(2):  # the residual may be small, and then is not quite orthogonal
            new = qr(new - basis @ (xp.matrix_transpose(basis) @ new), xp=xp)[0]
        basis, room = _appended(basis, room, new, most, xp=xp)
        more = xp.matrix_transpose(new) @ rest
        inside = xp.concat([inside, more], axis=0)
        inside, rest = _split(basis, rest - new @ more, inside, x_squares, xp=xp)
    raise AssertionError("the last round returns")


def _split(
    basis: Array, rest: Array, inside: Array | None, x_squares: Array, *, xp: Namespace
) -> tuple[Array, Array]:
    """Split x into basis @ inside + rest with basisᵀ rest = 0, from what is split of it so far."""
    # columns near rounding are split once more; a complete basis leaves nothing
    if inside is None:
        inside = xp.matrix_transpose(basis) @ rest
        rest = rest - basis @ inside
    if basis.shape[0] == basis.shape[1]:
        return inside, xp.zeros_like(rest)
    if bool(xp.any(xp.sum(rest * rest, axis=0) < SPLIT_AGAIN * x_squares)):
        more = xp.matrix_transpose(basis) @ rest
        inside, rest = inside + more, rest - basis @ more
    return inside, rest


def _directions(weighed: Array, limits: np.ndarray, spare: int, *, xp: Namespace) -> Array:
    """(m, a): the fewest leading left singular vectors that bring all layers within limits."""
    # the residuals rest_l T_lᵀ are `weighed` (b, m, r), and not all within limits yet
    layers, m, rank = (int(size) for size in weighed.shape)
    scales = on_device(1 / np.sqrt(limits), weighed, xp=xp)
    scaled = weighed * scales[:, None, None]
    w = xp.reshape(xp.permute_dims(scaled, (1, 0, 2)), (m, layers * rank))
    if float(xp.sum(w * w)) > GRAM_UP_TO:
        vectors, sigma, turned = svd(w, xp=xp)
        seen = sigma[:, None] * turned
    elif m >= layers * rank:
        values, turned = eigh_descending(xp.matrix_transpose(w) @ w, xp=xp)
        vectors = w @ turned  # of other lengths than 1 until the QR that follows
        seen = xp.sqrt(values)[:, None] * xp.matrix_transpose(turned)
    else:
        vectors = eigh_descending(w @ xp.matrix_transpose(w), xp=xp)[1]
        seen = xp.matrix_transpose(vectors) @ w
    squares = xp.sum(xp.reshape(seen * seen, (-1, layers, rank)), axis=2)  # (K, b)
    tails = np.cumsum(to_numpy(squares)[::-1], axis=0)[::-1]  # of what each direction and later add
    needed = int((tails > 1 - 1e-6).any(axis=1).sum())  # rounding must not ask for a second round
    return vectors[:, : max(1, min(needed, spare))]


class _Room:
    """Memory that columns of a basis are appended to, as rows (capacity, m).

    Only the longest basis in it may grow in place; from a shorter one, a copy is taken.
    """

    def __init__(self, rows: Array) -> None:
        self.rows = rows
        self.used = 0


def _appended(
    basis: Array, room: _Room | None, new: Array, most: int | None, *, xp: Namespace
) -> tuple[Array, _Room]:
    """The basis (m, k) and new columns (m, a) as a view of its room, or of one twice the size."""
    m, held = (int(size) for size in basis.shape)
    total = held + int(new.shape[1])
    if room is None or room.used != held or room.rows.shape[0] < total:
        capacity = min(max(2 * held, total, SMALLEST_ROOM), m if most is None else min(m, most))
        room = _Room(zeros((capacity, m), basis, xp=xp))
        room.rows[:held, :] = xp.matrix_transpose(basis)
    room.rows[held:total, :] = xp.matrix_transpose(new)
    room.used = total
    return xp.matrix_transpose(room.rows[:total, :]), room
