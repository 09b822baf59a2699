"""What every operation makes of every format, and how exactly."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["OPERATIONS", "SUMS", "Cell", "operations_table", "sums_table"]

Exactness = Literal["exact", "rounded", "float64", "best", "√2 best", "measured"]
FORMATS = ("LoRAStack", "Tucker2", "LowRankTucker2", "Tucker1", "Dense")

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


def _same(exactness: Exactness) -> tuple[Cell, ...]:
    return tuple(Cell(name, exactness) for name in FORMATS)


def _all(result: str, *exactness: Exactness) -> tuple[Cell, ...]:
    each = exactness * len(FORMATS) if len(exactness) == 1 else exactness
    return tuple(Cell(result, one) for one in each)


OPERATIONS: dict[str, tuple[Cell, ...]] = {
    "add, subtract": tuple(
        Cell(name, "rounded" if name == "Dense" else "exact") for name in FORMATS
    ),
    "scale": _same("rounded"),
    "transpose": _same("exact"),
    "take_layers": _same("exact"),
    "concat_layers": _same("exact"),
    "astype": _same("rounded"),
    "to_device": _same("exact"),
    "norm, layer_norms": _all("number", "float64"),
    "inner, cosine, gram": _all("number", "float64"),
    "distance": _all("number", "float64"),
    "apply, apply_transpose": _all("array", "rounded"),
    "to_dense": _all("array", *("rounded",) * 4, "exact"),
    "convert to LoRAStack": _all("LoRAStack", "exact", "rounded", "rounded", "exact", "exact"),
    "convert to Tucker2": _all("Tucker2", "exact", "exact", "rounded", "exact", "exact"),
    "convert to LowRankTucker2": _all("LowRankTucker2", "exact"),
    "convert to Tucker1": _all("Tucker1", "exact", "rounded", "rounded", "exact", "exact"),
    "convert to Dense": _all("Dense", *("rounded",) * 4, "exact"),
    "canonicalize": (*_same("rounded")[:4], Cell("Dense", "exact")),
    "round": (
        Cell("LoRAStack", "best"),
        Cell("Tucker2", "√2 best"),
        Cell("LowRankTucker2", "best"),
        Cell("Tucker1", "best"),
        Cell("LoRAStack", "best"),
    ),
    "tucker1": _all("Tucker1", "best"),
    "hosvd": _all("Tucker2", "√2 best"),
    "st_hosvd, hooi": _all("Tucker2", "measured"),
}
"""For each operation its results on the formats, in the order of `FORMATS`."""

SUMS: dict[tuple[str, str], str] = {
    ("LoRAStack", "LoRAStack"): "LoRAStack",
    ("LoRAStack", "Tucker2"): "Tucker2",
    ("LoRAStack", "LowRankTucker2"): "LowRankTucker2",
    ("LoRAStack", "Tucker1"): "LoRAStack",
    ("LoRAStack", "Dense"): "Dense",
    ("Tucker2", "Tucker2"): "Tucker2",
    ("Tucker2", "LowRankTucker2"): "LowRankTucker2",
    ("Tucker2", "Tucker1"): "Tucker2",
    ("Tucker2", "Dense"): "Dense",
    ("LowRankTucker2", "LowRankTucker2"): "LowRankTucker2",
    ("LowRankTucker2", "Tucker1"): "LowRankTucker2",
    ("LowRankTucker2", "Dense"): "Dense",
    ("Tucker1", "Tucker1"): "Tucker1",
    ("Tucker1", "Dense"): "Dense",
    ("Dense", "Dense"): "Dense",
}
"""The format of a sum, for every pair; two Tucker-1 stacks must share the same side.

Every other format goes into a `LowRankTucker2` bit for bit, and it itself into none: so mixtures
with it become it, and sums stay exact. Only a dense stack makes all dense, as its factors would be
larger than it is.
"""


def operations_table() -> str:
    """What every operation makes of every format, and what the words for exactness mean."""
    rows = [["Operation", "Result", *FORMATS]]
    rows += [_row(name, cells) for name, cells in OPERATIONS.items()]
    table = _aligned(rows)
    words = [f"{word + ':':10}{meaning}" for word, meaning in MEANINGS.items()]
    return "\n".join([table, table.splitlines()[1], *words])


def sums_table() -> str:
    """The format of a sum, and of stacks put together, for every pair of formats.

    Examples:
        >>> print(sums_table())
        a + b           LoRAStack       Tucker2         LowRankTucker2  Tucker1         Dense
        -------------------------------------------------------------------------------------
        LoRAStack       LoRAStack       Tucker2         LowRankTucker2  LoRAStack       Dense
        Tucker2         Tucker2         Tucker2         LowRankTucker2  Tucker2         Dense
        LowRankTucker2  LowRankTucker2  LowRankTucker2  LowRankTucker2  LowRankTucker2  Dense
        Tucker1         LoRAStack       Tucker2         LowRankTucker2  Tucker1         Dense
        Dense           Dense           Dense           Dense           Dense           Dense
    """
    rows = [["a + b", *FORMATS]]
    rows += [[one, *(SUMS.get((one, two)) or SUMS[two, one] for two in FORMATS)] for one in FORMATS]
    return _aligned(rows)


def _row(operation: str, cells: tuple[Cell, ...]) -> list[str]:
    """What comes out, and how exact it is; with a name where that is not the row's result."""
    results = {cell.result for cell in cells}
    row = [operation, results.pop() if len(results) == 1 else SAME]
    if row[1] != SAME:
        row[0] = operation.removesuffix(f" to {row[1]}")
    for cell, own in zip(cells, FORMATS, strict=True):
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
