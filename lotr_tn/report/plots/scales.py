"""Logarithmic axes with ticks that a reader can place."""

import math
from collections.abc import Callable, Iterable

from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

PARAMS_LABEL = "parameters (numbers stored)"
BYTES_LABEL = "bytes (of the updates, without a header)"
ERROR_LABEL = "relative error (Frobenius)"

TICKS = 6


def log_axis(
    axis: Axis, low: float, high: float, text: Callable[[float], str], *, whole: bool = False
) -> None:
    """At most `TICKS` ticks on a logarithmic axis, whole ones if `whole`, written by `text`."""
    ticks = _ticks(low, high)
    if whole:
        ticks = sorted({round(tick) for tick in ticks if tick >= 0.5})
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())
    if len(ticks) == TICKS or high / low < 10:
        axis.set_minor_locator(NullLocator())
    else:  # those that are seen: matplotlib makes and keeps many more beyond both ends
        between = axis.get_minor_locator().tick_values(low, high)
        axis.set_minor_locator(FixedLocator([tick for tick in between if low <= tick <= high]))


def _ticks(low: float, high: float) -> list[float]:
    """Round values: 1, 2 and 5, or 1 and 3 of each decade, or whole decades as they fit."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices = [
        [digit * 10.0**k for k in decades for digit in digits] for digits in ((1, 2, 5), (1, 3))
    ]
    choices += [[10.0**k for k in decades if k % step == 0] for step in range(1, len(decades) + 1)]
    inside = [[tick for tick in ticks if low <= tick <= high] for ticks in choices]
    found = next(ticks for ticks in inside if len(ticks) <= TICKS)
    if len(found) >= 2:
        return found
    linear = MaxNLocator(3).tick_values(low, high)
    return [float(tick) for tick in linear if low <= tick <= high]


def plain_number(value: float) -> str:
    """0.05, 100, 1e-06."""
    return f"{value:.3g}"


def short_count(value: float) -> str:
    """A count on an axis: 500, 2k, 1.5M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def positive(values: Iterable[float | None]) -> list[float]:
    """The values that a logarithm has."""
    return [value for value in values if value is not None and value > 0]
