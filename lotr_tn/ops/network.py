"""The tensor network of a stack: one equation, with sizes, and the order in which it is applied."""

from typing import TypeAlias

from lotr_tn._arguments import door
from lotr_tn._arrays import Array
from lotr_tn.contraction import ContractionPlan, plan
from lotr_tn.errors import FormatError, OptionError
from lotr_tn.formats import Dense, Format, LowRankTucker2, Stack, Tucker1, Tucker2
from lotr_tn.ops.primitives import lowered, primitives_of

Network: TypeAlias = tuple[str, tuple[tuple[int, ...], ...]]
"""The factors of a stack as terms of an equation, m and n and l among their letters; their shapes.
"""


@door
def plan_of(stack: Stack, *, rows: int | None = 1) -> ContractionPlan:
    """How x ΔW_lᵀ of all layers is had from the factors, for so many rows, and what it costs.

    The plan prints the equation of the format with sizes, each product and its flops.

    Args:
        stack: any stack (L, m, n). A registered format has the network that its primitives tell,
            `network(stack)`, or else its hub's; of a train rows and columns are digits.
        rows: rows of x; None for the updates themselves, as merging them into weights forms them.

    Returns:
        A plan of "bn,…->lbm", or of "…->lmn"; of a train with letters for each of its legs.

    Raises:
        FormatError: layers of different ranks are no one network; take them one by one.
        OptionError: rows is below 1.

    Examples:
        >>> import numpy as np
        >>> from lotr_tn import CP
        >>> stack = CP(np.ones((64, 4)), np.ones((12, 4)), np.ones((48, 4)))
        >>> plan_of(stack).equation, plan_of(stack).flops
        ('bn,mr,lr,nr->lbm', 6576)
        >>> plan_of(stack, rows=None).equation
        'mr,lr,nr->lmn'
    """
    if rows is not None and rows < 1:
        raise OptionError(f"rows must be at least 1, or None for the updates; found {rows}")
    if isinstance(stack, Format):
        planned = getattr(primitives_of(type(stack)), "planned", None)
        if planned is not None:
            return planned(stack, rows)
    equation, shapes = _network(stack)
    if rows is None:
        return plan(f"{equation}->lmn", *shapes)
    return plan(f"bn,{equation}->lbm", (rows, stack.shape[2]), *shapes)


def _network(stack: Stack) -> Network:
    if isinstance(stack, Format):
        tell = getattr(primitives_of(type(stack)), "network", None)
        return _network(lowered(stack)) if tell is None else tell(stack)
    if isinstance(stack, Tucker2):
        return "mp,lpq,nq", tuple(map(_shape, (stack.u, stack.core, stack.v)))
    if isinstance(stack, Tucker1):
        shapes = _shape(stack.own), _shape(stack.shared)
        return ("lmr,nr" if stack.side == "in" else "lnr,mr"), shapes
    if isinstance(stack, Dense):
        return "lmn", (_shape(stack.w),)
    if len({*stack.ranks}) > 1:
        raise FormatError(
            f"layers of ranks {min(stack.ranks)} to {max(stack.ranks)} are no one network: take "
            "them one by one, as stack[0]"
        )
    (layers, m, n), k = stack.shape, stack.ranks[0]
    if isinstance(stack, LowRankTucker2):
        (r1, r2) = stack.shared_ranks
        return "mp,lpk,lkq,nq", ((m, r1), (layers, r1, k), (layers, k, r2), (n, r2))
    return "lmk,lkn", ((layers, m, k), (layers, k, n))


def _shape(x: Array) -> tuple[int, ...]:
    return tuple(int(size) for size in x.shape)
