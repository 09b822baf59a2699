"""Certificates in native files: rows of figures in one tensor; in earlier files, texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.files.header import finite_number, require, sequence, table, text, whole_number
from lotr_tn.formats import Certificate

FIGURES = "figures"
"""The tensor with two rows of each group that has a certificate, for each layer and for bounds."""


def described(certificate: Certificate | None) -> dict[str, Any] | None:
    """What a header says of a certificate."""
    if certificate is None:
        return None
    return {"method": certificate.method, "sweeps": certificate.sweeps}


def rows_of(certificates: Sequence[Certificate | None]) -> RawTensor:
    """The norm and the distance of each layer of a group, then both its bounds; group by group."""
    rows = [np.zeros((0, 2))]
    for one in certificates:
        if one is not None:
            rows.append(np.stack([one.layer_norms, one.distances], axis=1))
            rows.append(np.array([[one.lower, one.upper]]))
    return RawTensor.of_finite(np.concatenate(rows).astype(np.float64), "a certificate")


class CertificateReader:
    """The certificates of a file, group by group."""

    def __init__(self, rows: RawTensor | None) -> None:
        self.rows = np.zeros((0, 2)) if rows is None else _rows(rows)
        self.used = 0

    def next(self, name: str, said: Any, layers: int) -> Certificate | None:
        """That of the next group."""
        if said is None:
            return None
        known = table(f"the certificate of {name}", said)
        method = text(f"the method of {name}", known["method"])
        sweeps = whole_number(f"the sweeps of {name}", known["sweeps"])
        if "layer_norms" in known:
            return _told(name, known, layers, method, sweeps)
        first, self.used = self.used, self.used + layers + 1
        mine = self.rows[first : self.used]
        require(len(mine) == layers + 1, f"{name} has no figures")
        norms, distances = np.ascontiguousarray(mine[:-1].T)
        lower, upper = mine[-1]
        return Certificate(distances, norms, lower, upper, method, sweeps)

    def require_all_used(self) -> None:
        """Refuse rows that no group has."""
        require(self.used == len(self.rows), f"there are figures of {len(self.rows)} layers")


def _rows(raw: RawTensor) -> np.ndarray:
    fits = raw.code == "F64" and len(raw.shape) == 2 and raw.shape[1] == 2
    require(fits, f"{FIGURES} is of {raw.dtype} {list(raw.shape)}")
    rows = raw.array()
    fits = bool((np.abs(rows) <= 1e308).all() and (rows >= 0).all())
    require(fits, f"{FIGURES} holds what is no finite number of at least 0")
    return rows


def _told(name: str, said: Mapping[str, Any], layers: int, method: str, sweeps: int) -> Certificate:
    """A certificate whose figures stand in the header."""
    lost = {"relative_error", "layer_distances", "lower", "upper"}
    exact = not lost & said.keys()  # nothing was lost

    def each(what: str) -> np.ndarray:
        values = sequence(f"{what} of {name}", said.get(what, [0.0] * layers if exact else None))
        require(len(values) == layers, f"{name} has {len(values)} {what} for {layers} layers")
        return np.array([finite_number(f"{what} of {name}", value) for value in values])

    def bound(what: str) -> np.float64:
        return np.float64(finite_number(f"{what} of {name}", 0.0 if exact else said[what]))

    finite_number(f"the error of {name}", 0.0 if exact else said["relative_error"])
    distances, norms = each("layer_distances"), each("layer_norms")
    return Certificate(distances, norms, bound("lower"), bound("upper"), method, sweeps)
