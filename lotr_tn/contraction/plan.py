"""Products of many small tensors, written as an equation and carried out as matrix products.

`plan` searches the order from shapes only; calls search nothing. One plan serves every library.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from operator import index

from lotr_tn._arguments import door
from lotr_tn._arrays import Array, cast, dtype_name, namespace_of
from lotr_tn.contraction.equation import Sizes, parsed, shape_of, size_of, sizes_of, those
from lotr_tn.contraction.lowering import Step, lowered
from lotr_tn.errors import FormatError, OptionError

_EXHAUSTIVE = 6  # operands up to which every order is tried
_OUTER_PRODUCTS = 8  # operands up to which a limited search also tries products that sum nothing


@dataclass(frozen=True, repr=False)
class ContractionPlan:
    """A contraction, ready to run: `plan(*arrays)`. Made by `lotr_tn.contraction.plan`.

    Attributes:
        asked: the equation as it was given.
        equation: the equation with every ellipsis written out in letters.
        shapes: the shape of every operand.
        steps: what is carried out, in order.
        path: the pairwise order; each pair counts within the operands that are left, and its
            result goes to their end (the convention of opt_einsum and of `numpy.einsum_path`).
        flops: sum over the steps.
        naive_flops: flops of one loop over all letters at once: for k operands k - 1 products
            and, where anything is summed, one addition per combination of the letters.
        largest: entries of the largest result of a step, the final one included. An operand whose
            axes lie in the wrong order for its product is copied besides, in its own size.
    """

    asked: str
    equation: str
    shapes: tuple[tuple[int, ...], ...]
    steps: tuple[Step, ...]
    path: tuple[tuple[int, int], ...]
    flops: int
    naive_flops: int
    largest: int

    def __call__(self, *arrays: Array) -> Array:
        """The contraction of these arrays.

        Args:
            arrays: one array per operand, in the order and of the shapes of the plan; of one
                library, dtype and device.

        Returns:
            The result, in the operands' dtype. Half precision is not widened: its sums are as
            exact as the library makes them. The result may be a view, of an operand where nothing
            is computed. Gradients flow where the library has them.

        Raises:
            FormatError: the number of arrays or a shape is not the plan's.
            BackendError: library, dtype or device differ.

        Cost: `flops`, and memory for the results that are still needed, each at most `largest`.
        """
        if len(arrays) != len(self.shapes):
            raise FormatError(
                f"the plan of {self.asked!r} needs {len(self.shapes)} arrays; found {len(arrays)}"
            )
        xp = namespace_of(**{f"operand_{number}": x for number, x in enumerate(arrays)})
        for number, (x, shape) in enumerate(zip(arrays, self.shapes, strict=True)):
            if x.shape != shape:
                raise FormatError(
                    f"operand_{number} has shape {tuple(x.shape)}; needed {shape}, the shape in "
                    f"the plan of {self.asked!r}: make another plan for other shapes"
                )
        held = list(arrays)
        for step in self.steps:
            held.append(step._run(held, xp))
            for number in step.operands:
                held[number] = None  # an intermediate is freed when it was used
        result, (first, *_) = held[-1], arrays
        # NumPy has no matrix product in bfloat16 and returns float32 there.
        return result if result.dtype == first.dtype else cast(result, dtype_name(first), xp=xp)

    def __repr__(self) -> str:
        return self.table()

    def table(self) -> str:
        """The plan as text: a line for every operand and every step, and the totals."""
        terms, count = self.equation.partition("->")[0].split(","), len(self.shapes)
        names = [*map(str, range(count)), *(f"t{i + 1}" for i in range(len(self.steps)))]
        rows = [(names[i], "", terms[i], str(self.shapes[i]), "", "") for i in range(count)]
        for name, step in zip(names[count:], self.steps, strict=True):
            of = ", ".join(names[i] for i in step.operands)
            flops = _flops(step.flops)
            rows.append((name, of, step.equation, str(step.shape), flops, step.method))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"contraction {self.asked}"]
        for name, of, equation, shape, flops, method in rows:
            cells = (name.rjust(4), of.ljust(widths[1]), equation.ljust(widths[2]))
            cells += (shape.ljust(widths[3]), flops.rjust(widths[4]), method)
            lines.append("  ".join(cells).rstrip())
        gain = self.naive_flops / self.flops if self.flops else 1
        times = f", {gain:,.{0 if gain >= 100 else 1}f} times as many" if gain > 1 else ""
        lines.append(f"total {_flops(self.flops)}; naive {_flops(self.naive_flops)}{times}")
        return "\n".join([*lines, f"largest result {self.largest:,} numbers"])


@door
def plan(
    equation: str, *shapes: tuple[int, ...], memory_limit: int | None = None
) -> ContractionPlan:
    """The cheapest order in which to contract tensors of these shapes.

    Args:
        equation: a letter per axis, operands separated by commas, the result's axes after `->`:
            `"...n,nq,lpq,mp->...lm"`. Letters missing from the result are summed over. An
            ellipsis stands for any axes; those of several operands are matched from the right.
        shapes: the shape of every operand.
        memory_limit: entries that no result of a step may exceed; None for no limit.

    Returns:
        The plan; the same object again for the same arguments.

    Raises:
        FormatError: equation and shapes do not fit together, or the equation asks for something
            that is not a contraction: a letter twice in one operand (a diagonal), for example.
        OptionError: no pairwise order keeps within memory_limit.

    Cost: milliseconds. Up to 6 operands every order is tried, more take a heuristic; within a
    memory limit, dynamic programming finds the cheapest. A repeated call costs a look-up.
    Source: Smith, Gray, opt_einsum, JOSS 3 (2018) 753.

    Examples:
        >>> import numpy as np
        >>> product = plan("ij,jk->ik", (2, 3), (3, 4))
        >>> product(np.ones((2, 3)), np.ones((3, 4))).shape
        (2, 4)
    """
    try:
        exact = tuple(tuple(map(index, shape)) for shape in shapes)
    except TypeError:
        found = ", ".join(type(shape).__name__ for shape in shapes)
        raise FormatError(
            f"shapes must be tuples of sizes, one per operand; found {found}: pass x.shape, not x"
        ) from None
    return _planned(equation, exact, memory_limit)


@lru_cache(maxsize=1024)
def _planned(
    asked: str, shapes: tuple[tuple[int, ...], ...], memory_limit: int | None
) -> ContractionPlan:
    terms, output = parsed(asked, shapes)
    sizes = sizes_of(terms, shapes)
    layouts, alive, steps = list(terms), list(range(len(terms))), []
    for number, term in enumerate(terms):
        others = set(output).union(*terms[:number], *terms[number + 1 :])
        rest = those(term, others)
        if rest != term:  # summed before any product: it makes every later step smaller
            axes = tuple(i for i, letter in enumerate(term) if letter not in others)
            flops = size_of(term, sizes)
            shape = shape_of(rest, sizes)
            steps.append(Step("sum", (number,), f"{term}->{rest}", shape, flops, (), axes))
            alive[number], layouts[number] = len(layouts), ""
            layouts.append(rest)
    path = _path([layouts[i] for i in alive], output, sizes, memory_limit)
    pairs, inputs = [], len(layouts)
    for i, j in path:
        # Between equally good layouts the first operand's rows come first: batches run through.
        pair = sorted((alive[i], alive[j]), key=lambda k: k < inputs)
        alive = [k for k in alive if k not in pair] + [inputs + len(pairs)]
        pairs.append((pair[0], pair[1]))
    steps += lowered(layouts, pairs, output, sizes)
    largest = max((math.prod(step.shape) for step in steps), default=size_of(output, sizes))
    if memory_limit is not None and largest > memory_limit:
        raise _beyond(memory_limit, asked, output, sizes)
    operations = len(terms) - 1 + (len(sizes) > len(output))
    return ContractionPlan(
        asked=asked,
        equation=f"{','.join(terms)}->{output}",
        shapes=shapes,
        steps=tuple(steps),
        path=path,
        flops=sum(step.flops for step in steps),
        naive_flops=operations * math.prod(sizes.values()),
        largest=largest,
    )


def _path(
    terms: list[str], output: str, sizes: Sizes, memory_limit: int | None
) -> tuple[tuple[int, int], ...]:
    """The pairwise order. Every letter here is in two operands at least, or in the output."""
    if memory_limit is not None and memory_limit < 1:
        raise OptionError(f"memory_limit must be at least 1 entry, or None; found {memory_limit}")
    if len(terms) < 3:
        return ((0, 1),) if len(terms) == 2 else ()
    from opt_einsum import DynamicProgramming, contract_path

    order = "optimal" if len(terms) <= _EXHAUSTIVE else "auto"
    if memory_limit is not None:
        # The other searches give up on pairs at the limit, and take all that is left at once.
        outer = len(terms) <= _OUTER_PRODUCTS
        order = DynamicProgramming(minimize="flops", cost_cap=False, search_outer=outer)
    equation, shapes = f"{','.join(terms)}->{output}", [shape_of(term, sizes) for term in terms]
    try:
        path, _ = contract_path(
            equation, *shapes, shapes=True, optimize=order, memory_limit=memory_limit
        )
    except RuntimeError:
        raise _beyond(memory_limit, equation, output, sizes) from None
    return tuple((min(pair), max(pair)) for pair in path)


def _beyond(memory_limit: int | None, equation: str, output: str, sizes: Sizes) -> OptionError:
    return OptionError(
        f"memory_limit is {memory_limit:,} entries; no pairwise order of {equation!r} keeps every "
        f"result within it (the last has {size_of(output, sizes):,}): raise the limit, or contract "
        "slices of an operand in turn"
    )


def _flops(number: int) -> str:
    """A count of flops as a reader wants it: 2.1 GFLOP."""
    for power, unit in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:,.1f} {unit}FLOP"
    return f"{number} FLOP"
