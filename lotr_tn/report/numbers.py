"""Numbers as a reader wants them."""

from collections.abc import Iterable


def count(number: int) -> str:
    """A count, short: 4.19M.

    Examples:
        >>> count(4194304), count(1560)
        ('4.19M', '1560')
    """
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**4)):
        if number >= size:
            return f"{number / (size if unit != 'k' else 1000):.3g}{unit}"
    return str(number)


def byte_size(number: int) -> str:
    """A file's size in powers of 1000: 3.6 MB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} bytes"


def error(value: float | None) -> str:
    """A relative error with four digits: 0.04987, 4.584e-08; a dash where there is none."""
    return "-" if value is None else f"{value:.4g}"


def percent(value: float | None) -> str:
    """An error as a percentage with three digits, 9.65%; small ones as they are."""
    if value is None or 0 < value < 1e-4:
        return error(value)
    return f"{100 * value:.3g}%"


def times(after: int, before: int) -> str:
    """A ratio: 0.35x."""
    return f"{after / before:.2f}x" if before else "-"


def file_growth(before: int, after: int) -> str:
    """What became of a file's size: 3.6 MB -> 1.8 MB (0.50x)."""
    return f"{byte_size(before)} -> {byte_size(after)} ({times(after, before)})"


def ratio_text(ratio: float | None) -> str:
    """A ratio that is known already, or a dash."""
    return "-" if ratio is None else f"{ratio:.2f}x"


def counted(number: int, thing: str) -> str:
    """So many of a thing: 1 layer, 12 modules."""
    return f"{number} {thing}" + ("" if number == 1 else "s")


def rank_range(ranks: Iterable[int]) -> str:
    """Ranks that may differ: 8, or 4-16."""
    found = sorted(set(ranks))
    return str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}"
