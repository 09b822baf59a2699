"""What a compression lost: measured errors, and bounds that need no trust."""

import math
from dataclasses import dataclass
from typing import final

from lotr_tn._arrays import Array, to_numpy


@final
@dataclass(frozen=True, eq=False)
class Certificate:
    """The measured error of a compressed stack against the stack it came from.

    With weights w_l, a decomposition lowers Σ w_l ‖ΔW_l − ΔŴ_l‖²; bounds are those of this sum's
    root. Without, every weight is 1.

    All errors are Frobenius norms of differences, computed in float64 from the factors as they are
    stored, so rounding to the storage dtype is inside. The arrays stay on the stack's device; a
    property fetches them when it is read.

    Attributes:
        distances: (L,) ‖ΔW_l − ΔŴ_l‖ of each layer.
        norms: (L,) ‖ΔW_l‖ of each layer.
        lower: no stack of this format and these ranks comes closer than this. For Tucker-2 it is
            the larger of both mode tails; for one shared side, or ranks of single layers, the tail
            of the singular values that were cut off.
        upper: what the method keeps to at least: for Tucker-2 the root of the sum of both squared
            mode tails, else the one tail; plus the rounding of the storage dtype.
        method: how it was found: `hosvd`, `st-hosvd`, `hooi`, `tucker-1`, `truncated-svd`; with
            `randomised` or `blocked` before it where the subspaces were sketched.
        sweeps: alternating sweeps used; 0 where the method has none.
        weights: (L,) the weight of each layer, or None.

    Source: De Lathauwer, De Moor and Vandewalle (2000), property 10; Vannieuwenhoven, Vandebril
    and Meerbergen (2012), theorem 6.5.
    """

    distances: Array
    norms: Array
    lower: Array
    upper: Array
    method: str
    sweeps: int
    weights: Array | None = None

    @property
    def norm(self) -> float:
        """‖T‖ of the whole stack."""
        return _root_sum_squares(self.layer_norms)

    @property
    def distance(self) -> float:
        """‖T − T̂‖ of the whole stack."""
        return _root_sum_squares(_numbers(self.distances))

    @property
    def layer_norms(self) -> tuple[float, ...]:
        """‖ΔW_l‖ of each layer."""
        return _numbers(self.norms)

    @property
    def relative_error(self) -> float:
        """‖T − T̂‖ / ‖T‖; 0 for a zero update kept as zero."""
        return ratio(self.distance, self.norm)

    @property
    def layer_errors(self) -> tuple[float, ...]:
        """‖ΔW_l − ΔŴ_l‖ / ‖ΔW_l‖ of each layer; infinite where only ΔŴ_l is not zero."""
        return tuple(map(ratio, _numbers(self.distances), self.layer_norms))

    @property
    def worst_error(self) -> float:
        """The relative error of the layer that loses most of its own norm; 0 without layers."""
        return max(self.layer_errors, default=0.0)

    @property
    def weighted_error(self) -> float:
        """(Σ w_l ‖ΔW_l − ΔŴ_l‖² / Σ w_l ‖ΔW_l‖²)^½; the relative error where all weigh 1."""
        return ratio(self.weighted_distance, self._weighted(self.layer_norms))

    @property
    def weighted_distance(self) -> float:
        """(Σ w_l ‖ΔW_l − ΔŴ_l‖²)^½, what a weighted decomposition lowers."""
        return self._weighted(_numbers(self.distances))

    @property
    def lower_bound(self) -> float:
        """No stack of this format and these ranks has a smaller (weighted) relative error."""
        return ratio(float(self.lower), self._weighted(self.layer_norms))

    @property
    def upper_bound(self) -> float:
        """The (weighted) relative error that the method keeps to at least."""
        return ratio(float(self.upper), self._weighted(self.layer_norms))

    def _weighted(self, values: tuple[float, ...]) -> float:
        if self.weights is None:
            return _root_sum_squares(values)
        pairs = zip(_numbers(self.weights), values, strict=True)
        return _root_sum_squares(tuple(w**0.5 * value for w, value in pairs))


def ratio(error: float, size: float) -> float:
    """Error / size, with 0 / 0 = 0: a zero update kept as zero has no error."""
    if size == 0:
        return error * math.inf if error != 0 else 0.0
    return error / size


def _numbers(x: Array) -> tuple[float, ...]:
    return tuple(float(value) for value in to_numpy(x))


def _root_sum_squares(values: tuple[float, ...]) -> float:
    return math.hypot(*values)  # without over- or underflow, and NaN of NaN
