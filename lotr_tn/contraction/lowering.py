"""Pairwise steps as matrix products, with the layout of every result chosen beforehand."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

from lotr_tn._arrays import Array, Namespace
from lotr_tn.contraction.equation import Sizes, shape_of, size_of, solid, those

_CALL = 500  # entries that are copied in about the time of one call of the library
_LAYOUTS = 16  # layouts of the intermediates that are pursued side by side


@dataclass(frozen=True)
class View:
    """One operand as a matrix product takes it: permuted, reshaped, transposed, each if needed."""

    axes: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    transposed: bool = False

    def of(self, x: Array, xp: Namespace) -> Array:
        """The operand so arranged; a view of it wherever its layout allows."""
        if self.axes is not None:
            x = xp.permute_dims(x, self.axes)
        if self.shape is not None:
            x = xp.reshape(x, self.shape)
        return x.mT if self.transposed else x


@dataclass(frozen=True)
class Step:
    """One step of a plan: a sum over axes, a product of two operands, or a final permutation.

    Attributes:
        method: `sum`, `matmul`, `multiply` (nothing is summed) or `permute`.
        operands: numbers of what enters: 0 … k - 1 are the plan's operands, k, k + 1, … the
            results of the steps, in their order.
        equation: the step in the caller's letters, in the order in which the axes lie.
        shape: shape of the result.
        flops: 2 for each multiply-add, 1 for each lone addition or product, exactly.
    """

    method: str
    operands: tuple[int, ...]
    equation: str
    shape: tuple[int, ...]
    flops: int
    _views: tuple[View, ...] = field(default=(), repr=False)
    _summed: tuple[int, ...] = field(default=(), repr=False)
    _reshaped: bool = field(default=False, repr=False)

    def _run(self, held: list[Array], xp: Namespace) -> Array:
        x = held[self.operands[0]]
        if self.method == "sum":
            return xp.sum(x, axis=self._summed)
        x = self._views[0].of(x, xp)
        if self.method == "permute":
            return x
        y = self._views[1].of(held[self.operands[1]], xp)
        x = x @ y if self.method == "matmul" else x * y
        return xp.reshape(x, self.shape) if self._reshaped else x


def lowered(
    layouts: list[str], pairs: list[tuple[int, int]], output: str, sizes: Sizes
) -> tuple[Step, ...]:
    """Every product as one matrix product, and the order of axes in between that copies least."""
    states: dict[tuple[str, ...], tuple[int, tuple[Step, ...]]] = {tuple(layouts): (0, ())}
    for pair in pairs:
        found = {}
        for held, (price, steps) in states.items():
            rest = tuple("" if k in pair else layout for k, layout in enumerate(held))
            kept = set(output).union(*rest)
            for step, layout, extra in _ways(pair, held, kept, output, sizes):
                key, total = (*rest, layout), price + extra
                if key not in found or total < found[key][0]:
                    found[key] = total, (*steps, step)
        states = dict(sorted(found.items(), key=lambda item: item[1][0])[:_LAYOUTS])
    ends = []
    for held, (price, steps) in states.items():
        layout, last = held[-1], len(held) - 1
        if layout != output:
            axes = tuple(map(layout.index, output))
            whole = solid(layout, sizes) == solid(output, sizes)
            price += _CALL if whole else size_of(output, sizes)  # whoever reads it next copies it
            equation, shape = f"{layout}->{output}", shape_of(output, sizes)
            steps = (*steps, Step("permute", (last,), equation, shape, 0, (View(axes),)))
        ends.append((price, steps))
    return min(ends, key=lambda end: end[0])[1]


def _ways(
    pair: tuple[int, int], held: tuple[str, ...], kept: set[str], output: str, sizes: Sizes
) -> Iterator[tuple[Step, str, int]]:
    """The layouts in which one product can be had: step, layout, price in copied entries."""
    for i, j in (pair, pair[::-1]):
        a, b = held[i], held[j]
        both, left, right = set(a) & set(b), those(a, set(a) - set(b)), those(b, set(b) - set(a))
        ways = []
        if both <= kept:
            method, operations = "multiply", 1
            whole = output if set(output) == {*a, *b} else a + right
            for layout in dict.fromkeys((a + right, whole)):
                views = (_factor(a, layout, sizes), _factor(b, layout, sizes))
                price = _CALL * sum(view.axes is not None for view in views)
                ways.append((layout, views, shape_of(layout, sizes), price))
        else:
            method, operations = "matmul", 2
            orders = [{those(x, of): None for x in (a, b)} for of in (both & kept, both - kept)]
            for batch, summed in product(*orders):
                # Without a batch, the first axes of b may serve as one: a is then multiplied by
                # each slice of b, and axes before and behind the summed ones need no copy.
                for cut in range(1 if batch else max(1, len(right))):
                    lead, rest, batched = batch + right[:cut], right[cut:], bool(batch)
                    first, price_a = _matrices(a, (batch, left, summed), batched, sizes)
                    second, price_b = _matrices(b, (lead, summed, rest), batched, sizes)
                    shape = _folded((lead, left, rest), batched, sizes)
                    price = price_a + price_b + _CALL * size_of(lead, sizes)
                    ways.append((lead + left + rest, (first, second), shape, price))
        flops = operations * size_of(a + right, sizes)
        for layout, views, shape, price in ways:
            equation, full = f"{a},{b}->{layout}", shape_of(layout, sizes)
            reshaped = shape != full
            yield Step(method, (i, j), equation, full, flops, views, (), reshaped), layout, price


def _matrices(
    layout: str, groups: tuple[str, str, str], batched: bool, sizes: Sizes
) -> tuple[View, int]:
    """An operand as (batch, rows, columns), and the entries that are copied for it."""
    batch, rows, columns = groups
    transposed = bool(rows and columns) and layout.index(columns[0]) < layout.index(rows[0])
    if transposed:
        groups = (batch, columns, rows)
    view = _arranged(layout, "".join(groups), _folded(groups, batched, sizes), sizes, transposed)
    # Merged axes must be neighbours, and BLAS wants neighbouring entries within one matrix.
    dense = solid(layout, sizes)
    apart = any(solid(group, sizes) not in dense for group in groups)
    copied = apart or (dense != "" and dense[-1] in batch)
    return view, copied * size_of(layout, sizes) + _CALL * (view.axes is not None)


def _factor(layout: str, out: str, sizes: Sizes) -> View:
    """An operand of an entrywise product, with axes of size 1 where it lacks one."""
    order = those(out, layout)
    start = out.index(order[0]) if order else len(out)
    shape = tuple(sizes[letter] if letter in layout else 1 for letter in out[start:])
    return _arranged(layout, order, shape, sizes)


def _arranged(
    layout: str, order: str, shape: tuple[int, ...], sizes: Sizes, transposed: bool = False
) -> View:
    """The view that permutes to an order and reshapes from there, without what changes nothing."""
    axes = None if order == layout else tuple(map(layout.index, order))
    return View(axes, None if shape == shape_of(order, sizes) else shape, transposed)


def _folded(groups: tuple[str, ...], batched: bool, sizes: Sizes) -> tuple[int, ...]:
    """One axis per group. Without a batch, an empty group has none: vectors stay vectors."""
    return tuple(size_of(group, sizes) for group in groups if group or batched)
