"""Bases of a stack that is seen twice, one block of layers at a time, from a random sketch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lotr_tn._arrays import Array, namespace_of, to_numpy, zeros
from lotr_tn.decompose.block_terms import (
    block_terms,
    by_layer,
    layer_triangles,
    on_device,
    one_for_each,
)
from lotr_tn.decompose.streaming import FLOORS, Bases
from lotr_tn.errors import OptionError
from lotr_tn.formats import LoRAStack
from lotr_tn.linalg.factor import svd


@dataclass(frozen=True, eq=False)
class Sketch:
    """Random combinations of all layers seen, Σ_l ΔW_l Ω_l and Σ_l ΔW_lᵀ Ψ_l.

    Every layer has random numbers of its own, so that layers cannot cancel each other: the sums are
    sketches of all layers side by side, and one below the other.

    Attributes:
        left: (m, s) float64.
        right: (n, s) float64.
        layers: how many have been seen.
        seed: of the random numbers; together with a layer's number it decides its own.

    Accuracy: for each side, the expected squared norm of what all layers together miss in `bases`
    is at most (1 + r / (s − r − 1)) times the tail of rank r, for any r ≤ s − 2. That is the mean;
    theorem 10.7 bounds the chance of more. `project` then measures what really is missed.
    Source: Halko, Martinsson and Tropp (2011), Finding structure with randomness, theorem 10.5.
    """

    left: Array
    right: Array
    layers: int = 0
    seed: int = 0

    @classmethod
    def empty(
        cls, m: int, n: int, size: int, *, seed: int = 0, like: Array | None = None
    ) -> "Sketch":
        """A sketch of no layer, with s = size columns a side; NumPy where `like` is left out."""
        if size < 1:
            raise OptionError(f"a sketch needs at least one column; found size {size}")
        like = np.empty(0) if like is None else like
        xp = namespace_of(like=like)
        return cls(zeros((m, size), like, xp=xp), zeros((n, size), like, xp=xp), 0, seed)

    def including(
        self, block: LoRAStack, scales: Sequence[float] | Array | None = None
    ) -> "Sketch":
        """The sketch of the layers so far and those of a block; this one stays as it is.

        Args:
            block: the next layers (b, m, n), any storage dtype.
            scales: (b,) numbers that the layers are multiplied by, such as 1 / ‖ΔW_l‖ where all
                relative errors count the same; 1 where left out.

        Raises:
            FormatError: the block's sizes are not those of the sketch, or it is not finite.
            OptionError: scales are not b numbers of at least 0.

        Cost: 2·(m + n)·R_b·(r + s) flops, for y_lᵀ Ω_l = T_lᵀ (Q_lᵀ Ω_l) is as random as T_lᵀ times
        r_l · s normal numbers, y_l = Q_l T_l; memory O((m + n)·(s + R_b)).
        """
        terms = block_terms(block, (int(self.left.shape[0]), int(self.right.shape[0])))
        xp = namespace_of(left=self.left, right=self.right, up=terms.x)
        layers = len(block.ranks)
        factors = one_for_each("scales", np.ones(layers) if scales is None else scales, layers)
        if not np.isfinite(factors).all():
            raise OptionError("scales must be finite; found infinity")
        sides = []
        for side, (held, x, y) in enumerate(
            ((self.left, terms.x, terms.y), (self.right, terms.y, terms.x))
        ):
            triangles = layer_triangles(by_layer(y, layers, xp=xp), terms.wide, xp=xp)
            size = int(triangles.shape[1]), int(held.shape[1])
            numbers = [
                factor * np.random.default_rng((self.seed, side, layer)).standard_normal(size)
                for layer, factor in enumerate(factors, self.layers)
            ]
            mixed = xp.matrix_transpose(triangles) @ on_device(np.stack(numbers), x, xp=xp)
            sides.append(held + x @ xp.reshape(mixed, (int(x.shape[1]), size[1])))
        return replace(self, left=sides[0], right=sides[1], layers=self.layers + layers)

    def bases(self) -> Bases:
        """Orthonormal bases of what was sketched, at most s columns a side.

        Directions below 1e-14 of the strongest are left out. Cost: O((m + n)·s²) flops.
        """
        xp = namespace_of(left=self.left, right=self.right)
        sides = []
        for side in (self.left, self.right):
            vectors, sigma, _ = svd(side, xp=xp)
            sizes = to_numpy(sigma)
            sides.append(vectors[:, : int((sizes > FLOORS[True] * sizes[:1]).sum())])
        return Bases(*sides)
