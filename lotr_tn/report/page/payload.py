"""The numbers of a record as the page's script reads them, small and without loss of a digit."""

import base64
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from lotr_tn.report.forms import form_record, forms_in, number_bytes
from lotr_tn.report.numbers import error

SHOWN_ONLY = ("norm", "spectra", "stable_ranks", "curves", "front", "budgets", "in_bits")
"""Parts of a record whose floats are only ever shown or drawn, with four digits."""


def payload(record: dict[str, Any]) -> str:
    """The record as JSON that may stand inside a script element; its numbers must be finite."""
    kept = {key: value for key, value in record.items() if key != "groups"}
    kept["budgets"] = _four_digits(record["budgets"])
    kept["number_bytes"] = number_bytes(record)
    kept["forms"] = {name: form_record(name) for name in forms_in(record)}
    kept["groups"] = [_group(group) for group in record["groups"]]
    text = json.dumps(kept, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _group(group: dict[str, Any]) -> dict[str, Any]:
    kept = {k: _four_digits(v) if k in SHOWN_ONLY else v for k, v in group.items()}
    kept["front"] = [
        {key: value for key, value in point.items() if key != "layer_errors"}
        for point in kept["front"]
    ]
    kept["layer_errors"] = packed(x for point in group["front"] for x in point["layer_errors"])
    if (surface := group.get("surface")) is not None:
        kept["surface"] = {
            "r1": surface["r1"],
            "r2": surface["r2"],
            "errors": packed(np.ravel(surface["errors"]).tolist()),
            "lower": packed(np.ravel(surface["lower"]).tolist()),
        }
    if (overlap := group.get("overlap")) is not None:
        kept["overlap"] = {
            "left": _hundredths(overlap["left"]),
            "right": _hundredths(overlap["right"]),
            "chance": _four_digits(overlap["chance"]),
        }
    return kept


def packed(values: Iterable[float | None]) -> dict[str, Any]:
    """Numbers as base64 of little-endian floats that show the same four digits; None becomes NaN.

    Single precision, or its neighbour where rounding would change a digit shown; else double.
    """
    exact = np.array(list(values), dtype=np.float64)
    with np.errstate(over="ignore", under="ignore"):
        narrow = exact.astype("<f4")
    wrong = _shown_differently(narrow, exact)
    away = np.where(narrow[wrong] > exact[wrong], -np.inf, np.inf).astype("<f4")
    narrow[wrong] = np.nextafter(narrow[wrong], away)
    chosen = exact.astype("<f8") if _shown_differently(narrow, exact) else narrow
    return {
        "bits": 8 * chosen.dtype.itemsize,
        "data": base64.b64encode(chosen.tobytes()).decode("ascii"),
    }


def _shown_differently(narrow: np.ndarray, exact: np.ndarray) -> list[int]:
    pairs = zip(narrow.tolist(), exact.tolist(), strict=True)
    return [i for i, (a, b) in enumerate(pairs) if error(a) != error(b)]


def _hundredths(matrix: list[list[float | None]]) -> str:
    """The lower triangle of a matrix of 0 … 1 in hundredths, as base64 of bytes; 255 for none."""
    entries = [x for i, row in enumerate(matrix) for x in row[: i + 1]]
    shown = bytes(255 if x is None else round(100 * min(max(x, 0.0), 1.0)) for x in entries)
    return base64.b64encode(shown).decode("ascii")


def _four_digits(value: Any) -> Any:
    """A value with every float rounded to the digits that are shown."""
    if isinstance(value, float):
        return float(error(value))
    if isinstance(value, dict):
        return {key: _four_digits(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_four_digits(part) for part in value]
    return value
