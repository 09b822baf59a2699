"""What every operation makes of every format, and how exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lotr_tn.formats import Core, Dense, LoRAStack, LowRankTucker2, Stack, Tucker1, Tucker2
from lotr_tn.ops.conversion import shared_format
from lotr_tn.ops.primitives import CORE, has_rule, primitives_of, registered_formats

Exactness = Literal["exact", "rounded", "float64", "best", "√2 best", "measured"]

SAME = "same format"

MEANINGS: dict[Exactness, str] = {
    "exact": "entries are only moved: the same updates, bit for bit",
    "rounded": "the same updates, to the rounding of the storage dtype",
    "float64": "a number in float64, from factors as they are stored",
    "best": "no result of these ranks is closer; the error is measured",
    "√2 best": "at most √2 times the least error of these ranks; the error is measured",
    "measured": "between that and the best; the error and a lower bound are measured",
}


@dataclass(frozen=True)
class Cell:
    """The result of an operation on a format, and how exact it is."""

    result: str
    exactness: Exactness


ROUNDED: dict[type[Stack], tuple[type[Stack], ...]] = {
    LoRAStack: (Tucker2, LowRankTucker2),
    Tucker2: (LowRankTucker2,),
    LowRankTucker2: (),
    Tucker1: (Tucker2, LowRankTucker2),
    Dense: (LoRAStack, Tucker2, LowRankTucker2, Tucker1),
}
"""From which core formats a conversion multiplies factors, instead of moving entries."""

ROUNDS: dict[type[Core], Cell] = {
    LoRAStack: Cell("LoRAStack", "best"),
    Tucker2: Cell("Tucker2", "√2 best"),
    LowRankTucker2: Cell("LowRankTucker2", "best"),
    Tucker1: Cell("Tucker1", "best"),
    Dense: Cell("LoRAStack", "best"),
}
"""What `round` makes of each core format."""


def all_formats() -> tuple[type[Stack], ...]:
    """The core formats, and those that are registered."""
    return (*CORE, *registered_formats())


def column(kind: type[Stack]) -> dict[str, Cell]:
    """What every operation makes of one format; of a registered one, by its rules or its hub."""
    name, hub = kind.__name__, _hub_of(kind)
    joined = _sum_of_two(kind)
    sums = "exact" if _moves(kind) and kind is not Dense else "rounded"
    canonical = Cell(hub.__name__, "exact" if hub is Dense else "rounded")
    cells = {
        "add, subtract": Cell(joined, sums),
        "scale": Cell(_linear("scale", kind), "rounded"),
        "transpose": Cell(name, "exact"),
        "take_layers": Cell(_linear("take_layers", kind), "exact"),
        "concat_layers": Cell(joined, "exact" if _moves(kind) else "rounded"),
        "astype": Cell(name, "rounded"),
        "to_device": Cell(name, "exact"),
        "norm, layer_norms": Cell("number", "float64"),
        "inner, cosine, gram": Cell("number", "float64"),
        "distance": Cell("number", "float64"),
        "apply, apply_transpose": Cell("array", "rounded"),
        "to_dense": Cell("array", "exact" if kind is Dense else "rounded"),
    }
    for to in all_formats():
        cells[f"convert to {to.__name__}"] = Cell(to.__name__, _conversion(kind, to))
    ruled: dict[str, tuple[Cell, Exactness]] = {
        "canonicalize": (canonical, "rounded"),
        "round_stack": (ROUNDS[hub], "measured"),
    }
    for rule, (cell, exactness) in ruled.items():
        own = Cell(name, exactness) if has_rule(rule, kind) else cell
        cells[rule.removesuffix("_stack")] = own
    return cells | {
        "tucker1": Cell("Tucker1", "best"),
        "hosvd": Cell("Tucker2", "√2 best"),
        "st_hosvd, hooi": Cell("Tucker2", "measured"),
    }


def sum_of(one: type[Stack], two: type[Stack]) -> str:
    """The format of a sum, and of stacks put together; Tucker-1 must share the same side.

    Every other core format goes into a `LowRankTucker2` bit for bit, and it itself into none: so
    mixtures with it become it, and sums stay exact. Only a dense stack makes all dense, as its
    factors would be larger than it is. A registered format enters as what it is in its hub.
    """
    if one is two and one not in CORE:
        return _sum_of_two(one)
    return shared_format((_hub_of(one), _hub_of(two))).__name__


def _hub_of(kind: type[Stack]) -> type[Core]:
    core = next((core for core in CORE if core is kind), None)
    return primitives_of(kind).hub if core is None else core


def _sum_of_two(kind: type[Stack]) -> str:
    """The format of a sum of two stacks of one."""
    closed = kind in CORE or getattr(primitives_of(kind), "closed", False)
    return kind.__name__ if closed else f"{kind.__name__} or {_hub_of(kind).__name__}"


def _moves(kind: type[Stack]) -> bool:
    """Whether sums, its hub and what comes from a LoRA only move entries."""
    return kind in CORE or getattr(primitives_of(kind), "moves", False)


def _conversion(kind: type[Stack], to: type[Stack]) -> Exactness:
    """How exact a conversion is: into the hub, to a LoRA for a registered format, and on."""
    if kind is to:
        return "exact"
    way = [_hub_of(kind), to] if to in CORE else [_hub_of(kind), LoRAStack]
    rounds = way[0] is not way[1] and way[0] in ROUNDED[way[1]]
    return "exact" if not rounds and _moves(kind) and _moves(to) else "rounded"


def _linear(operation: str, kind: type[Stack]) -> str:
    """The format that an operation which is linear in one field gives."""
    stays = kind in CORE or has_rule(operation, kind) or primitives_of(kind).layered is not None
    return (kind if stays else _hub_of(kind)).__name__


def operations_table() -> str:
    """What every operation makes of every format, and what the words for exactness mean.

    The core formats stand above, and those that are registered below.
    """
    tables = [_table(kinds) for kinds in (CORE, registered_formats()) if kinds]
    words = [f"{word + ':':10}{meaning}" for word, meaning in MEANINGS.items()]
    rule = "-" * max(len(line) for table in tables for line in table.splitlines())
    return "\n".join([f"\n{rule}\n".join(tables), rule, *words])


def _table(kinds: Sequence[type[Stack]]) -> str:
    columns = {kind.__name__: column(kind) for kind in kinds}
    rows = [
        _row(operation, {name: cells[operation] for name, cells in columns.items()})
        for operation in column(Dense)
    ]
    return _aligned([["Operation", "Result", *columns], *rows])


def sums_table() -> str:
    """The format of a sum, and of stacks put together, for every pair of formats.

    Examples:
        >>> for line in sums_table().splitlines()[:3]:
        ...     print(line[:39])
        a + b           LoRAStack       Tucker2
        ---------------------------------------
        LoRAStack       LoRAStack       Tucker2
    """
    kinds = all_formats()
    rows = [["a + b", *(kind.__name__ for kind in kinds)]]
    rows += [[one.__name__, *(sum_of(one, two) for two in kinds)] for one in kinds]
    return _aligned(rows)


def _row(operation: str, cells: dict[str, Cell]) -> list[str]:
    """What comes out, and how exact it is; with a name where that is not the row's result."""
    results = {cell.result for cell in cells.values()}
    row = [operation, results.pop() if len(results) == 1 else SAME]
    if row[1] != SAME:
        row[0] = operation.removesuffix(f" to {row[1]}")
    for own, cell in cells.items():
        expected = own if row[1] == SAME else row[1]
        note = "" if cell.result == expected else f"{cell.result}, "
        row.append(note + cell.exactness)
    return row


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
