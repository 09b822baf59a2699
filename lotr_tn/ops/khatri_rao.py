"""Sides of a CP that are products of parts: heads and what is within a head, layers and kinds."""

from typing import Literal

from lotr_tn._arguments import door
from lotr_tn._arrays import Array, at_least_float32, dtype_name, namespace_of, narrow
from lotr_tn.errors import FormatError, OptionError
from lotr_tn.formats import CP
from lotr_tn.formats.checks import require_axes, require_equal


@door
def khatri_rao(*parts: Array) -> Array:
    """The column-wise Kronecker product of matrices of R columns: one side of a CP, of its parts.

    Row i·q + j of the product of x (p, R) and y (q, R) is x[i] y[j], entry by entry: the first part
    changes slowest, as a head is a block of rows that lie together.

    Args:
        parts: one matrix or more, (p_1, R), (p_2, R), …, of one library, dtype and device.

    Returns:
        (p_1·p_2·…, R) in their dtype; each entry rounded once.

    Raises:
        FormatError: there is no part, or the parts have not one R.
        BackendError: library, dtype or device differ.

    Cost: p_1·p_2·…·R products. The parts store (p_1 + p_2 + …)·R numbers.
    Source: Khatri and Rao (1968).

    Examples:
        >>> import numpy as np
        >>> khatri_rao(np.array([[1.0], [2.0]]), np.array([[3.0], [5.0], [7.0]])).ravel().tolist()
        [3.0, 5.0, 7.0, 6.0, 10.0, 14.0]
    """
    if not parts:
        raise FormatError("khatri_rao takes at least one matrix (p, R); found none")
    xp = namespace_of(**{f"part_{number}": x for number, x in enumerate(parts)})
    for number, x in enumerate(parts):
        require_axes(f"part {number}", x, "(p, R)")
        require_equal("R", ("part 0", parts[0].shape[1]), (f"part {number}", x.shape[1]))
    found = at_least_float32(parts[0], xp=xp)
    for part in parts[1:]:
        product = found[:, None, :] * at_least_float32(part, xp=xp)[None, :, :]
        found = xp.reshape(product, (found.shape[0] * part.shape[0], found.shape[1]))
    return narrow(found, dtype_name(parts[0]), xp=xp)


@door
def lorta(
    model: Array,
    head: Array,
    heads: Array,
    layers: Array,
    kinds: Array | None = None,
    *,
    heads_on: Literal["out", "in"] = "out",
    scale: float = 1.0,
) -> CP:
    """The CP of LoRTA's five factors, exactly: one tensor for all attention matrices of a model.

    Its two published codes apply the same factors the other way round, so that heads are blocks of
    outputs in one and of inputs in the other. With M[i, h, j] = Σ_r model[i, r] heads[h, r]
    head[j, r] layers[l, r] kinds[k, r] and h, j together as one axis:

    - `heads_on="out"`: ΔW = s·Mᵀ, as in the code on LitGPT, y += s·x M. It suits queries, keys and
      values, whose outputs are heads.
    - `heads_on="in"`: ΔW = s·M, as in the code on PEFT, y += s·x Mᵀ. It suits the output
      projection, whose inputs are heads.

    Args:
        model: (d, R), along the width of the model.
        head: (d / H, R), within a head.
        heads: (H, R).
        layers: (L, R).
        kinds: (K, R), queries, keys, values and outputs, in the order of the stack; None where
            there is one kind, or where `layers` has a row for each module, as in CaRA's tensors.
        heads_on: the side whose axis is cut into heads.
        scale: s, such as α / R.

    Returns:
        A CP of L·K layers, the kinds of one layer together; ΔW of layer l and kind k is number
        l·K + k. The parts store R·(d + d/H + H + L + K) numbers, the CP its own.

    Raises:
        FormatError: the factors have not one R.
        OptionError: `heads_on` is neither "out" nor "in".
        BackendError: library, dtype or device differ.

    Source: Hounie et al. (2024), LoRTA, arXiv 2410.04060.

    Examples:
        >>> import numpy as np
        >>> sizes = {"model": 768, "head": 64, "heads": 12, "layers": 12, "kinds": 4}
        >>> parts = {name: np.ones((size, 4)) for name, size in sizes.items()}
        >>> sum(x.size for x in parts.values()), lorta(**parts).shape
        (3440, (48, 768, 768))
    """
    if heads_on not in ("out", "in"):
        raise OptionError(f'heads_on must be "out" or "in"; found {heads_on!r}')
    weights = layers if kinds is None else khatri_rao(layers, kinds)
    namespace_of(model=model, head=head, heads=heads, layers=layers)
    if scale != 1:
        xp = namespace_of(weights=weights)
        weights = narrow(at_least_float32(weights, xp=xp) * scale, dtype_name(weights), xp=xp)
    cut = khatri_rao(heads, head)
    return CP(cut, weights, model) if heads_on == "out" else CP(model, weights, cut)
