"""How a stack is printed: small arrays by their entries, large ones by dtype and shape."""

from dataclasses import fields
from typing import Any

import numpy as np

from lotr_tn._arrays import Array, dtype_name, to_numpy

LARGEST_SHOWN = 40


def describe(record: Any) -> str:
    """`Class(field=…, …)` of a format; of a certificate, the relative error."""
    shown = [
        f"{field.name}={_value(getattr(record, field.name))}"
        for field in fields(record)
        if field.name != "certificate"
    ]
    certificate = getattr(record, "certificate", None)
    if certificate is not None:
        shown.append(f"relative_error={certificate.relative_error:.3g}")
    return f"{type(record).__name__}({', '.join(shown)})"


def _value(x: Any) -> str:
    if hasattr(x, "dtype"):
        return _array(x)
    if isinstance(x, tuple) and any(hasattr(part, "dtype") for part in x):
        return f"({', '.join(map(_value, x))},)"
    if isinstance(x, tuple) and len(x) > 8 and len(set(x)) == 1:
        return f"({x[0]},) * {len(x)}"
    return repr(x)


def _array(x: Array) -> str:
    size = int(np.prod(x.shape))
    if not 0 < size <= LARGEST_SHOWN or str(x.device) != "cpu":
        return f"<{dtype_name(x)} {tuple(x.shape)}>"
    numbers = to_numpy(x)
    if dtype_name(x) == "bfloat16":  # which NumPy cannot format by itself
        numbers = numbers.astype(np.float32)
    text = np.array2string(numbers, separator=", ", max_line_width=10**6)
    rows = " ".join(text.split())
    return rows if dtype_name(x) == "float64" else f"{dtype_name(x)}({rows})"
