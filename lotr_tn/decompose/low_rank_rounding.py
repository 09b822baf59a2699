"""Rounding of Tucker-2 stacks with low-rank cores: each core cut where the whole stack gains most.

Thin QRs of U and V leave a small LoRA stack of the same norms and singular values. It is cut as a
LoRA is, and carried back in the singular directions of its own unfoldings.
"""

from dataclasses import dataclass, replace

from lotr_tn._arrays import UNIT_ROUNDOFF, Array, Namespace, cast, float64, narrow, to_numpy, zeros
from lotr_tn.decompose.assemble import beyond, fix_signs, underflow_of_terms
from lotr_tn.decompose.reduction import reduced
from lotr_tn.decompose.search import resolution
from lotr_tn.decompose.truncation import (
    GlobalOrder,
    differentiable_rule,
    global_order,
    meet_in_order,
)
from lotr_tn.formats import Certificate, LowRankTucker2
from lotr_tn.linalg import cross_gram, svd_of_product
from lotr_tn.linalg.bases import signs
from lotr_tn.linalg.derivatives import truncated_svd_with_gradient
from lotr_tn.linalg.factor import pinv, svd
from lotr_tn.linalg.ranks import Budget, FixedRank, RankRule
from lotr_tn.ops.arrays import common_namespace, differentiable, storage_dtype
from lotr_tn.ops.distance import layer_distances
from lotr_tn.ops.layers import layer_of
from lotr_tn.ops.moving import astype
from lotr_tn.ops.norms import root_sum_squares


def round_low_rank_tucker2(stack: LowRankTucker2, rule: RankRule, dtype: str) -> LowRankTucker2:
    """The stack with each core cut to leading singular values, certified."""
    # a `FixedRank` keeps at most r1 in every layer; an error or a budget chooses for all together
    if differentiable(stack):
        return _round_with_gradient(stack, rule, dtype)
    if isinstance(rule, FixedRank):
        terms = _terms_of(stack, floor=None)
        ranks = tuple(min(rule.r1, own) for own in terms.ranks)
        return terms.kept(ranks, dtype)
    terms = _terms_of(stack, resolution(wide=True))
    order = global_order([to_numpy(s) for s in terms.values])
    if isinstance(rule, Budget):
        return terms.kept(terms.affordable(order, rule.count), dtype)
    return meet_in_order(order, rule, dtype, lambda ranks: terms.kept(ranks, dtype))


def canonical_low_rank_tucker2(stack: LowRankTucker2) -> LowRankTucker2:
    """The same stack in singular directions, without terms and directions of only rounding."""
    dtype = storage_dtype(stack)
    terms = _terms_of(stack, resolution(wide=dtype == "float64"))
    return terms.kept(terms.ranks, dtype)


@dataclass(frozen=True)
class _Terms:
    """A stack as q_left (u_l diag(s_l) v_lᵀ) q_rightᵀ with orthonormal columns everywhere."""

    stack: LowRankTucker2
    q_left: Array  # (m, K1) float64
    q_right: Array  # (n, K2) float64
    lefts: tuple[Array, ...]  # (K1, k_l) for each layer
    values: tuple[Array, ...]  # (k_l,)
    rights: tuple[Array, ...]  # (K2, k_l)
    floor: float | None  # share of the norm below which all is rounding; None to keep it, too

    @property
    def xp(self) -> Namespace:
        """The array library."""
        return common_namespace(self.stack)

    @property
    def norms(self) -> Array:
        """(L,) ‖ΔW_l‖."""
        return self.xp.stack([root_sum_squares(s) for s in self.values])

    @property
    def ranks(self) -> tuple[int, ...]:
        """How many terms of each layer are more than rounding."""
        return tuple(self._count(s) for s in self.values)

    def _count(self, sigma: Array) -> int:
        """How many singular values (k,) are more than rounding; without a floor, all."""
        if self.floor is None:
            return int(sigma.shape[0])
        return int((to_numpy(sigma) > self.floor * float(root_sum_squares(self.norms))).sum())

    def affordable(self, order: GlobalOrder, params: int) -> tuple[int, ...]:
        """The ranks of the most terms, in the order of their worth, that a budget pays for."""
        # shared directions that the kept terms do not use are not paid for
        fewest, most = 0, sum(self.ranks)
        while fewest < most:  # a term more never costs less
            count = (fewest + most + 1) // 2
            if self._parameters(order.ranks(count)) <= params:
                fewest = count
            else:
                most = count - 1
        return order.ranks(fewest)

    def _parameters(self, ranks: tuple[int, ...]) -> int:
        _, m, n = self.stack.shape
        r1, r2 = (int(axes.shape[1]) for axes in self._axes(ranks))
        return m * r1 + n * r2 + sum(ranks) * (r1 + r2)

    def _axes(self, ranks: tuple[int, ...]) -> tuple[Array, Array]:
        """Singular directions (K1, r1) and (K2, r2) of the kept terms' two unfoldings."""
        xp = self.xp
        both = []
        for side in (self.lefts, self.rights):
            parts = [
                x[:, :rank] * s[:rank][None, :]
                for x, s, rank in zip(side, self.values, ranks, strict=True)
            ]
            beside = xp.concat(parts, axis=1)
            if 0 in beside.shape:
                both.append(zeros((int(beside.shape[0]), 0), beside, xp=xp))
                continue
            axes, sigma, _ = svd(beside, xp=xp)
            both.append(axes[:, : self._count(sigma)])
        return both[0], both[1]

    def kept(self, ranks: tuple[int, ...], dtype: str) -> LowRankTucker2:
        """The leading terms of each layer as a stored stack, measured."""
        xp = self.xp
        ranks = tuple(min(pair) for pair in zip(ranks, self.ranks, strict=True))
        axes = self._axes(ranks)
        (u, into_u), (v, into_v) = (
            _stored_basis(q @ part, part, dtype, xp=xp)
            for q, part in zip((self.q_left, self.q_right), axes, strict=True)
        )
        ups, downs = [], []
        for left, s, right, rank in zip(self.lefts, self.values, self.rights, ranks, strict=True):
            root = xp.sqrt(s[:rank])[None, :]
            up, down = into_u @ (left[:, :rank] * root), into_v @ (right[:, :rank] * root)
            sign = signs(up, xp=xp)[None, :]
            ups.append(narrow(up * sign, dtype, xp=xp))
            downs.append(narrow(xp.matrix_transpose(down * sign), dtype, xp=xp))
        result = LowRankTucker2(u, xp.concat(ups, axis=1), xp.concat(downs, axis=0), v, ranks)
        return replace(result, certificate=self._certified(result))

    def _certified(self, result: LowRankTucker2) -> Certificate:
        xp, norms = self.xp, self.norms
        distances = layer_distances(*(astype(s, "float64") for s in (self.stack, result)))
        pairs = zip(self.values, result.ranks, strict=True)
        tail = root_sum_squares(xp.concat([s[rank:] for s, rank in pairs], axis=0))
        size = root_sum_squares(norms)
        wide = UNIT_ROUNDOFF["float64"]
        noise = size * (4 * wide * len(result.ranks) ** 0.5)
        below = beyond(tail, noise)
        most, (r1, r2) = max(1, *result.ranks), result.shared_ranks
        terms = 1 + 2.5 * most**0.5 + r1**0.5 + r2**0.5
        rounding = (UNIT_ROUNDOFF[storage_dtype(result)] + 32 * wide) * terms
        dropped = (self.floor or 0.0) * (
            sum(self.stack.shared_ranks) + sum(self.stack.ranks)
        ) ** 0.5
        above = tail + noise + (rounding + dropped) * size
        above = above + underflow_of_terms(storage_dtype(result), (r1, r2), sum(result.ranks), size)
        return Certificate(distances, norms, below, above, "truncated-svd", 0)


def _terms_of(stack: LowRankTucker2, floor: float | None) -> _Terms:
    xp = common_namespace(stack)
    reduction = reduced(stack)
    if reduction.left is None or reduction.right is None:  # a rank is 0 everywhere
        layers, m, n = stack.shape
        nothing = (zeros((0, 0), stack.u, xp=xp),) * layers
        none = (zeros((0,), stack.u, xp=xp),) * layers
        left, right = zeros((m, 0), stack.u, xp=xp), zeros((n, 0), stack.u, xp=xp)
        return _Terms(stack, left, right, nothing, none, nothing, floor)
    small = reduction.small
    found = [svd_of_product(small.up[:, part], small.down[part, :]) for part in small.slices]
    lefts, values = tuple(u for u, _, _ in found), tuple(s for _, s, _ in found)
    rights = tuple(xp.matrix_transpose(vt) for _, _, vt in found)
    return _Terms(stack, reduction.left, reduction.right, lefts, values, rights, floor)


def _stored_basis(basis: Array, axes: Array, dtype: str, *, xp: Namespace) -> tuple[Array, Array]:
    """Columns (m, r) as stored, and what takes coordinates (K,) to the best ones for them."""
    if 0 in basis.shape:
        return cast(basis, dtype, xp=xp), xp.matrix_transpose(axes)
    stored = cast(fix_signs(basis, xp=xp), dtype, xp=xp)
    wide = float64(stored, xp=xp)
    # as rounded, the columns are not quite orthonormal
    inverse = pinv(cross_gram(wide, wide, xp=xp), xp=xp)
    return stored, inverse @ cross_gram(wide, basis, xp=xp) @ xp.matrix_transpose(axes)


def _round_with_gradient(stack: LowRankTucker2, rule: RankRule, dtype: str) -> LowRankTucker2:
    """The same at a fixed rank, through which torch can differentiate; U and V stay as they are."""
    # for the singular vectors x, y of a layer, x √s = U (up_l down_l Vᵀ y / √s), and so for y
    fixed = differentiable_rule(rule)
    xp = common_namespace(stack)
    u, v = float64(stack.u, xp=xp), float64(stack.v, xp=xp)
    ups, downs = [], []
    for index, part in enumerate(stack.slices):
        up, down = (float64(x, xp=xp) for x in (stack.up[:, part], stack.down[part, :]))
        rank = min(fixed.r1, part.stop - part.start, *stack.shared_ranks, *stack.shape[1:])
        if 0 < rank < part.stop - part.start:
            layer = layer_of(stack, index, xp=xp)
            right = xp.matrix_transpose(layer.right)
            x, s, y = truncated_svd_with_gradient(layer.left, right, rank)
            root = xp.sqrt(s)
            core = up @ down
            up, down = core @ (v.mT @ y) / root[None, :], (x.mT @ u) @ core / root[:, None]
        ups.append(narrow(up[:, :rank], dtype, xp=xp))
        downs.append(narrow(down[:rank, :], dtype, xp=xp))
    kept = tuple(int(down.shape[0]) for down in downs)
    u, v = cast(stack.u, dtype, xp=xp), cast(stack.v, dtype, xp=xp)
    return LowRankTucker2(u, xp.concat(ups, axis=1), xp.concat(downs, axis=0), v, kept)
