"""How many layers it takes until sharing pays."""

from lotr_tn._arguments import door
from lotr_tn.errors import OptionError


@door
def break_even_layers(m: int, n: int, rank: int, r1: int, r2: int | None = None) -> int | None:
    """The fewest layers at which Tucker-2 of ranks (r1, r2) stores less than LoRA of a rank.

    Args:
        m: outputs of a layer.
        n: inputs of a layer.
        rank: of the LoRA.
        r1: shared output directions.
        r2: shared input directions; the same as r1 where left out.

    Returns:
        The smallest L with m·r1 + n·r2 + L·r1·r2 < L·rank·(m + n); None where a core alone stores
        as much as a layer of the LoRA.

    Raises:
        OptionError: a size is below 1.

    Examples:
        >>> break_even_layers(4096, 4096, rank=16, r1=128)
        10
        >>> break_even_layers(768, 768, rank=2, r1=64) is None
        True
    """
    r2 = r1 if r2 is None else r2
    for name, value in (("m", m), ("n", n), ("rank", rank), ("r1", r1), ("r2", r2)):
        if value < 1:
            raise OptionError(f"{name} must be at least 1; found {value}")
    saved = rank * (m + n) - r1 * r2
    return None if saved <= 0 else (m * r1 + n * r2) // saved + 1
