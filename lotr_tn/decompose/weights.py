"""A weight for each layer in the objective of a decomposition."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from lotr_tn._arrays import Array, to_numpy
from lotr_tn.decompose.block_terms import numbers_of
from lotr_tn.errors import OptionError
from lotr_tn.formats import Stack
from lotr_tn.ops.arithmetic import scale
from lotr_tn.ops.arrays import common_namespace, first_array
from lotr_tn.ops.norms import layer_norms

Weights: TypeAlias = Sequence[float] | Array | str | None  # L numbers, "unit-norm", or None


def weighted(stack: Any, weights: Weights) -> tuple[Any, Array | None]:
    """The stack with layer l times √w_l, and the weights (L,) float64 on its device."""
    # Σ ‖√w_l ΔW_l − X_l‖² is the weighted objective of X_l = √w_l ΔŴ_l
    if weights is None:
        return stack, None
    values = layer_weighting(stack, weights)
    xp = common_namespace(stack)
    like = first_array(stack)
    on_device = xp.asarray(values, device=like.device)
    return scale(stack, [float(w) for w in np.sqrt(values)]), on_device


def layer_weighting(stack: Stack, weights: Weights) -> np.ndarray:
    """The weights as L finite numbers from 0 to 1, on the host."""
    # the largest is scaled to 1, so that nothing overflows; that changes no minimiser
    layers = stack.shape[0]
    if isinstance(weights, str):
        if weights != "unit-norm":
            raise OptionError(f'weights must be L numbers or "unit-norm"; found {weights!r}')
        norms = to_numpy(layer_norms(stack))
        smallest = norms[norms > 0].min(initial=np.inf)
        if not np.isfinite(smallest):
            return np.ones(layers)
        return np.where(norms > 0, (smallest / np.where(norms > 0, norms, 1)) ** 2, 0.0)
    values = numbers_of("weights", weights, layers)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() == 0:
        raise OptionError("weights must be finite, at least 0, and not all 0")
    return values / values.max()
