"""The layers of a block side by side, in float64, as arrays that treat all layers at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import array_api_compat
import numpy as np

from lotr_tn._arrays import Array, Namespace, float64, is_wide, namespace_of, to_numpy, zeros
from lotr_tn.errors import FormatError, OptionError
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.factor import eigh, triangle_of
from lotr_tn.ops.checks import refuse_gradient


@dataclass(frozen=True)
class BlockTerms:
    """ΔW_l = x_l y_lᵀ, b layers of one rank r; ragged ones are filled up with zero columns."""

    x: Array  # (m, b·r) float64
    y: Array  # (n, b·r) float64
    x_squares: Array  # (b·r,) ‖x_j‖² of the columns
    y_squares: Array  # (b·r,)
    sizes: np.ndarray  # (b,) Σ_j ‖x_j‖²‖y_j‖² over a layer's columns, which rounding is relative to
    wide: bool  # whether the input was float64
    ranks: tuple[int, ...]  # of the block
    own: Array | None  # (R_b,) the columns that are the block's, or None for all


def block_terms(block: LoRAStack, shape: tuple[int, int]) -> BlockTerms:
    """The terms of a block: of shape (m, n), finite, and with no derivatives recorded."""
    if block.shape[1:] != shape:
        raise FormatError(
            f"the bases are for updates of {shape[0]} by {shape[1]}, those of the block are "
            f"{block.shape[1]} by {block.shape[2]}: keep one pair of bases for each shape"
        )
    refuse_gradient("a decomposition block by block", block)
    xp = namespace_of(up=block.up, down=block.down)
    x, y = float64(block.up, xp=xp), xp.matrix_transpose(float64(block.down, xp=xp))
    own = None
    if len({*block.ranks}) > 1:
        widest, total = max(block.ranks), sum(block.ranks)
        columns = np.full((len(block.ranks), widest), total)  # where a column of zeros stands
        for row, part in zip(columns, block.slices, strict=True):
            row[: part.stop - part.start] = np.arange(part.start, part.stop)
        columns = columns.reshape(-1)
        own = on_device(np.flatnonzero(columns < total), x, xp=xp)
        x, y = (
            xp.take(
                xp.concat([z, zeros((int(z.shape[0]), 1), z, xp=xp)], axis=1),
                on_device(columns, z, xp=xp),
                axis=1,
            )
            for z in (x, y)
        )
    with np.errstate(all="ignore"):
        x_squares, y_squares = xp.sum(x * x, axis=0), xp.sum(y * y, axis=0)
        products = to_numpy(x_squares * y_squares)
    sizes = products.reshape(len(block.ranks), max(block.ranks)).sum(axis=1)
    if not np.isfinite(sizes).all():
        found = int(np.flatnonzero(~np.isfinite(sizes))[0])
        raise FormatError(
            f"layer {found} of the block has no finite norm: look for NaN and infinity in its "
            "factors"
        )
    return BlockTerms(x, y, x_squares, y_squares, sizes, is_wide(block.up), block.ranks, own)


def by_layer(x: Array, layers: int, *, xp: Namespace) -> Array:
    """(b, m, r) for the layers' columns side by side, (m, b·r)."""
    m, total = (int(size) for size in x.shape)
    return xp.permute_dims(xp.reshape(x, (m, layers, total // layers)), (1, 0, 2))


def layer_squares(x: Array, *, xp: Namespace) -> Array:
    """(b,) sums of squares of matrices (b, p, q)."""
    return xp.sum(x * x, axis=(1, 2))


def layer_triangles(x: Array, wide: bool, *, xp: Namespace) -> Array:
    """(b, r', r) small matrices T_l with T_lᵀ T_l = x_lᵀ x_l, for x (b, m, r)."""
    # On the Gram route columns first get length 1, so that one next to a far longer one keeps its
    # digits: van der Sluis (1969), Condition numbers and equilibration of matrices.
    if x.shape[1] <= x.shape[2] or x.shape[2] == 0:
        return x[:, : x.shape[2], :]
    if wide:
        return triangle_of(x, xp=xp)
    gram = xp.matrix_transpose(x) @ x
    lengths = xp.sqrt(xp.sum(x * x, axis=1))
    positive = lengths > 0
    inverse = xp.where(positive, 1 / xp.where(positive, lengths, xp.ones_like(lengths)), lengths)
    values, vectors = eigh(gram * inverse[:, :, None] * inverse[:, None, :], xp=xp)
    roots = xp.sqrt(xp.where(values < 0, xp.zeros_like(values), values))
    return roots[:, :, None] * xp.matrix_transpose(vectors) * lengths[:, None, :]


def one_for_each(what: str, numbers: Sequence[float] | Array, layers: int) -> np.ndarray:
    """One number of at least 0 for each layer, on the host."""
    values = numbers_of(what, numbers, layers)
    if not (values >= 0).all():
        raise OptionError(f"{what} must be at least 0; found {values[~(values >= 0)][0]}")
    return values


def numbers_of(what: str, numbers: Sequence[float] | Array | None, layers: int) -> np.ndarray:
    """One number for each layer, on the host."""
    values = to_numpy(numbers) if hasattr(numbers, "dtype") else np.asarray(numbers)
    values = values.astype(np.float64)
    if values.shape != (layers,):
        raise OptionError(
            f"{what} must be one number for each of {layers} layers; found shape {values.shape}"
        )
    return values


def on_device(x: np.ndarray, like: Array, *, xp: Namespace) -> Array:
    """A host array on the device of `like`."""
    return xp.asarray(x, device=array_api_compat.device(like))
