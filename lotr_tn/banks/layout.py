"""A form as a bank lays it out: shared sides in bases, and rows that are each layer's own.

What follows holds for every form whose arrays are one factor for each shared side and own numbers
beside, by the axes that the form says of them; no form is named here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lotr_tn.analysis.forms import Form
from lotr_tn.errors import OptionError
from lotr_tn.formats import Certificate

ROWS = ("layer", "term")


def _shared(form: Form) -> dict[str, tuple[str, ...]]:
    """The axes of every factor that all layers share: a side and a rank, where banks keep it."""
    return {name: form.axes_of(name) for name in form.fields if name not in form.own}


def require_layout(form: Form) -> None:
    """Refuse a form with an array that is neither a factor of a shared side nor rows of layers."""
    shared = _shared(form).values()
    sides = [axes[0] for axes in shared]
    fits = all(len(axes) == 2 and axes[0] in ("out", "in") for axes in shared)
    fits = fits and len(sides) == len(set(sides))
    known = {"out", "in", *(axes[-1] for axes in shared)}
    for name in form.own:
        rows = [axis for axis in form.axes_of(name) if axis in ROWS]
        fits = fits and len(rows) == 1 and {*form.axes_of(name)} - {*rows} <= known
    if not fits:
        axes = "; ".join(f"{name} ({text})" for name, text in form.axes.items())
        raise OptionError(
            f"a bank keeps one factor for each shared side and rows of each layer, and {form.name} "
            f"holds {axes}; choose another form, or convert each adapter for itself"
        )


def _row_axis(form: Form, name: str) -> int:
    return next(at for at, axis in enumerate(form.axes_of(name)) if axis in ROWS)


def rows_of(form: Form, stack: Any) -> dict[str, np.ndarray]:
    """The own arrays of a stack, each with its rows first."""
    return {name: np.moveaxis(getattr(stack, name), _row_axis(form, name), 0) for name in form.own}


def bases_of(form: Form, stack: Any) -> dict[str, np.ndarray]:
    """The shared factors of a stack, by side."""
    return {side: getattr(stack, name) for name, (side, _) in _shared(form).items()}


def stack_of_rows(
    form: Form,
    rows: Mapping[str, np.ndarray],
    bases: Mapping[str, np.ndarray],
    terms: Sequence[int],
    certificate: Certificate | None,
) -> Any:
    """The stack of some rows in bases; `terms` are the rank terms of each layer."""
    arrays, widths = {}, {}
    for name in form.fields:
        if name in form.own:
            arrays[name] = np.moveaxis(rows[name], 0, _row_axis(form, name))
        else:
            side, rank = form.axes_of(name)
            arrays[name], widths[rank] = bases[side], bases[side].shape[1]
    each = terms if any(map(form.per_term, form.own)) else ()
    return form.stack_of(arrays, (*widths.values(), *each), certificate)


def row_shapes(
    form: Form, shape: tuple[int, int], counts: tuple[int, int], widths: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """The shapes of own arrays: of (m, n), counts of layers and rank terms, and basis columns."""
    sizes = dict(zip((*ROWS, "out", "in"), (*counts, *shape), strict=True))
    sizes |= {rank: widths[side] for side, rank in _shared(form).values()}
    found = {}
    for name in form.own:
        axes = list(form.axes_of(name))
        axes.insert(0, axes.pop(_row_axis(form, name)))
        found[name] = tuple(sizes[axis] for axis in axes)
    return found


def widened(form: Form, stack: Any, bases: Mapping[str, np.ndarray]) -> Any:
    """A stack in all columns of both bases, own numbers filled by zeros.

    One that shares a single side, or whose both sides have one rank, stays as it is.
    """
    shared = _shared(form)
    if len(shared) < 2 or len({rank for _, rank in shared.values()}) < 2:
        return stack
    arrays, more = {}, {}
    for name, (side, rank) in shared.items():
        arrays[name] = bases[side]
        more[rank] = bases[side].shape[1] - getattr(stack, name).shape[1]
    for name in form.own:
        added = [(0, more.get(axis, 0)) for axis in form.axes_of(name)]
        arrays[name] = np.pad(getattr(stack, name), added)
    widths = [bases[side].shape[1] for side, _ in shared.values()]
    _, each = form.split(tuple(form.ranks(stack)))
    return form.stack_of({name: arrays[name] for name in form.fields}, (*widths, *each), None)
