"""Tensor trains of stacks by thin factors, of dense weights, and rounding within the format."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lotr_tn._arguments import door
from lotr_tn._arrays import Array, Namespace, narrow
from lotr_tn.decompose.legs import Shape, legs_of, paired
from lotr_tn.decompose.search import asked_dtype
from lotr_tn.decompose.train_rounding import EXACT, Ranks, Rounding, rounded
from lotr_tn.errors import FormatError
from lotr_tn.formats import Dense, Stack, TensorTrain
from lotr_tn.linalg.ranks import RankRule
from lotr_tn.linalg.trains import Cores, split, with_orthonormal_columns, with_orthonormal_rows
from lotr_tn.ops.arrays import common_namespace, storage_dtype, with_arrays
from lotr_tn.ops.checks import refuse_gradient
from lotr_tn.ops.conversion import as_lora
from lotr_tn.ops.magnitude import LARGEST_STACK, in_range, require_finite, times_power
from lotr_tn.ops.moving import astype
from lotr_tn.ops.primitives import primitives_of, rule
from lotr_tn.ops.tensor_train import wide_cores


@door
def tensor_train(
    stack: Stack, shape: Shape = "balanced", ranks: Ranks = EXACT, *, dtype: str | None = None
) -> TensorTrain:
    """A tensor train of every layer, out legs before in legs (TT-LoRA), from thin factors.

    The TT-SVD of the layers, of which none is formed: QR of each side's factor, leg by leg, then
    sweeps of QR and SVD over small cores. All layers have the same bonds, and share nothing.

    Args:
        stack: any stack (L, m, n); what it is as a LoRA is decomposed.
        shape: legs of the rows and of the columns, such as ((8, 8), (4, 16)); `balanced`, of about
            8 each; or a name of `lotr_tn.decompose.PUBLISHED`.
        ranks: a rank for all bonds, or one for each; a `RelativeError` or an `Energy`, of which
            every bond gets its share, and what is left goes where it saves most; or a `Budget`.
        dtype: storage dtype of the result; the stack's own where left out.

    Returns:
        A TensorTrain whose cores but the first have orthonormal rows, with a certificate: the
        measured error, a lower bound (the largest tail of any bond) and an upper one (the root of
        the sum of all squared tails, at most √(K − 1) times the best error of these bonds).

    Raises:
        OptionError: the legs do not multiply to the sizes.
        RankError: a rank is negative, there is not one for each bond, or a rule is out of range.
        DerivativeError: torch would record the decomposition.

    Warns:
        PrecisionWarning: the storage dtype is too coarse for the error asked for.

    Cost: for rank r and legs of size d about 12·(m + n)·r²·d flops a layer; memory of the factors
    a few times, filled up to the largest rank, and never m·n.
    Source: Oseledets (2011), algorithms 1 and 2, on the factors.

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import LoRAStack
        >>> rng = np.random.default_rng(0)
        >>> stack = LoRAStack(rng.standard_normal((64, 6)), rng.standard_normal((6, 48)), (2, 4))
        >>> train = tensor_train(stack, ((8, 8), (8, 6)))
        >>> train.ranks, train.certificate.relative_error < 1e-14
        ((8, 4, 6), True)
    """
    dtype = asked_dtype(stack, dtype)
    refuse_gradient("tensor_train", stack)
    require_finite(stack)
    out, into = legs_of(shape, *stack.shape[1:])
    lora, exponent = in_range(as_lora(astype(stack, "float64")))
    xp = common_namespace(lora)
    thin = primitives_of(TensorTrain).of_lora(lora, xp=xp)
    assert thin is not None
    left, right = thin.cores
    train = TensorTrain((*_rows_split(left, out, xp=xp), *_columns_split(right, into, xp=xp)))
    return _restored(rounded(Rounding.of(train, lora, len(out)), ranks, dtype), exponent)


@door
def mpo(
    weights: Array | Dense,
    shape: Shape = "balanced",
    ranks: Ranks = EXACT,
    *,
    dtype: str | None = None,
) -> TensorTrain:
    """Dense weights as a matrix product operator: a train of paired legs, by TT-SVD.

    Args:
        weights: (m, n), or (L, m, n) of which each layer gets a train of its own.
        shape: as many legs of the rows as of the columns, such as ((4, 4, 3), (4, 4, 4)), or as
            for `tensor_train`; core k has the k-th of both.
        ranks: as for `tensor_train`. At full bonds the central core has as many entries as the
            matrix, so that only cut bonds, or a core that layers share, save anything.
        dtype: storage dtype of the result; that of the weights where left out.

    Returns:
        A TensorTrain with a certificate, as of `tensor_train`.

    Raises:
        FormatError: weights are no matrices.
        OptionError, RankError, DerivativeError: as for `tensor_train`.

    Cost: that of the QR and SVD of matrices (k, m·n/k) for every bond k; memory of a few copies.
    Source: Oseledets (2010); MPOP (arXiv 2106.02205), whose theorem 1 is the upper bound.

    Examples:
        >>> import numpy as np
        >>> train = mpo(np.arange(144.0).reshape(12, 12), ((3, 4), (4, 3)))
        >>> train.shape, train.legs, train.ranks
        ((1, 12, 12), ((3, 4), (4, 3)), (2,))
    """
    stack = weights if isinstance(weights, Dense) else _stacked(weights)
    dtype = asked_dtype(stack, dtype)
    refuse_gradient("mpo", stack)
    require_finite(stack)
    layers, m, n = stack.shape
    out, into = paired(shape, m, n)
    wide, exponent = in_range(astype(stack, "float64"))
    xp, count = common_namespace(wide), len(out)
    digits = xp.reshape(wide.w, (layers, *out, *into))
    pairs = [axis for k in range(1, count + 1) for axis in (k, k + count)]
    whole = xp.reshape(xp.permute_dims(digits, (0, *pairs)), (layers, 1, m * n, 1))
    legs = list(zip(out, into, strict=True))
    train = TensorTrain(tuple(_pairs_split(whole, legs, xp=xp)))
    return _restored(rounded(Rounding.of(train, wide, 0), ranks, dtype), exponent)


@door
def orthogonalise(train: TensorTrain, site: int) -> TensorTrain:
    """The same train in the gauge of one core: the others are orthonormal towards it.

    Cores before it have orthonormal columns (r·o·n, r'), cores behind it orthonormal rows, so that
    the norm of a layer is that of its core there. Bonds that their neighbours cannot reach go.

    Args:
        train: a tensor train; every layer gets cores of its own.
        site: the core, from -K to K - 1.

    Returns:
        A train in the dtype of the one given, without a certificate.

    Raises:
        FormatError: there is no such core.
        DerivativeError: torch would record it.

    Cost: 4·Σ o_k·n_k·r³ flops a layer. Accuracy: the updates change by rounding alone.
    Source: Oseledets (2011).

    Examples:
        >>> import numpy as np
        >>> import lotr_tn as lt
        >>> train = lt.tensor_train(lt.Dense(np.arange(24.0).reshape(1, 6, 4)), ((2, 3), (2, 2)))
        >>> middle = lt.decompose.orthogonalise(train, 1)
        >>> bool(np.isclose(np.linalg.norm(middle.cores[1]), lt.norm(train)))
        True
    """
    count = len(train.cores)
    if not -count <= site < count:
        raise FormatError(f"site must be a core, 0 … {count - 1}; found {site}")
    refuse_gradient("orthogonalise", train)
    require_finite(train)
    xp, dtype = common_namespace(train), storage_dtype(train)
    cores, exponent = wide_cores(train, xp=xp)
    rows = with_orthonormal_rows(cores, site % count + 1, xp=xp)
    found, _ = with_orthonormal_columns(rows, site % count, xp=xp)
    found[site] = times_power(found[site], exponent)
    return with_arrays(train, cores=tuple(narrow(core, dtype, xp=xp) for core in found))


@rule("round_stack", TensorTrain)
def _round_stack(stack: TensorTrain, ranks: RankRule, *, dtype: str | None = None) -> TensorTrain:
    refuse_gradient("round", stack)
    return _within(stack, ranks, asked_dtype(stack, dtype))


@rule("canonicalize", TensorTrain)
def _canonicalize(stack: TensorTrain) -> TensorTrain:
    count = len(stack.cores) - 1
    most = max((max(core.shape[1], core.shape[4]) for core in stack.cores), default=1)
    return _within(stack, [int(most)] * count, storage_dtype(stack))


def _within(stack: TensorTrain, ranks: Ranks, dtype: str) -> TensorTrain:
    xp = common_namespace(stack)
    cores, exponent = wide_cores(stack, xp=xp)
    if abs(exponent) <= LARGEST_STACK:
        cores[0], exponent = times_power(cores[0], exponent), 0
    train = with_arrays(stack, cores=tuple(cores))
    return _restored(rounded(Rounding.of(train, train), ranks, dtype), exponent)


def _restored(made: TensorTrain, exponent: int) -> TensorTrain:
    """A train, and the errors that it is certified, times 2^exponent."""
    if exponent == 0:
        return made
    dtype, known = storage_dtype(made), made.certificate
    assert known is not None
    if dtype != "float64" and known.norm > 0:
        raise FormatError(
            f"updates of about 1e{exponent * 0.30103:.0f} do not fit {dtype}; choose float64, or "
            "scale them first"
        )
    names = ("distances", "norms", "lower", "upper")
    moved = {name: times_power(getattr(known, name), exponent) for name in names}
    cores = (times_power(made.cores[0], exponent), *made.cores[1:])
    return replace(made, cores=cores, certificate=replace(known, **moved))


def _stacked(weights: Any) -> Dense:
    if getattr(weights, "ndim", None) not in (2, 3):
        found = getattr(weights, "shape", type(weights).__name__)
        raise FormatError(f"weights must be an array (m, n) or (L, m, n); found {found}")
    return Dense(weights if weights.ndim == 3 else weights[None, ...])


def _rows_split(core: Array, legs: Sequence[int], *, xp: Namespace) -> Cores:
    """A core (L, 1, m, 1, r) as one of each leg, those before the last of orthonormal columns."""
    layers, _, m, _, rank = core.shape
    found, rest = [], xp.reshape(core, (layers, m, rank))
    for leg in reversed(legs[1:]):
        rows, right = rest.shape[1] // leg, rest.shape[2]
        rest, t = split(xp.reshape(rest, (rest.shape[0], rows, leg * right)), xp=xp)
        found.append(xp.reshape(t, (t.shape[0], t.shape[1], leg, 1, right)))
    found.append(rest[:, None, :, None, :])
    return found[::-1]


def _columns_split(core: Array, legs: Sequence[int], *, xp: Namespace) -> Cores:
    """A core (L, r, 1, n, 1) as one of each leg, those behind the first of orthonormal rows."""
    return _pairs_split(core[:, :, 0, :, :], [(1, leg) for leg in legs], xp=xp)


def _pairs_split(core: Array, legs: Sequence[tuple[int, int]], *, xp: Namespace) -> Cores:
    """(L, r, Π o·n, 1) as a core of each pair of legs, of orthonormal rows behind the first."""
    found, rest, rank = [], core[:, :, :, 0], core.shape[1]
    for o, n in legs[:-1]:
        columns = rest.shape[2] // (o * n)
        whole = xp.reshape(rest, (rest.shape[0], rank * o * n, columns))
        q, t = split(whole.mT, xp=xp)
        found.append(xp.reshape(t.mT, (t.shape[0], rank, o, n, t.shape[1])))
        rest, rank = q.mT, q.shape[2]
    return [*found, xp.reshape(rest, (rest.shape[0], rank, *legs[-1], 1))]
