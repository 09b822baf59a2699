"""The native file: one safetensors file with shared factors, cores, extras and the certificate."""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from lotr_tn.checkpoints.adapter import Layout, LoTRAdapter, LoTRGroup, Target
from lotr_tn.checkpoints.tensors import RawTensor, read_safetensors, write_safetensors
from lotr_tn.checkpoints.writing import write_file
from lotr_tn.errors import CheckpointError, LotrError
from lotr_tn.formats import Certificate, Tucker2

__all__ = ["METADATA_KEY", "is_native", "load_native", "save_native"]

METADATA_KEY = "lotr"
SCHEMA = 1
FIELDS = ("u", "core", "v")


def is_native(path: Path) -> bool:
    """Whether a path is a safetensors file with our metadata.

    Raises:
        CheckpointError: it is named as safetensors and is damaged.
    """
    if not path.is_file() or path.suffix != ".safetensors":
        return False
    return METADATA_KEY in read_safetensors(path)[1]


def save_native(adapter: LoTRAdapter, path: Path, *, force: bool) -> None:
    """Write the native file, all or nothing.

    Raises:
        CheckpointError: the target exists and `force` is false, or writing failed.
    """
    tensors: dict[str, RawTensor] = {}
    for name, group in adapter.groups.items():
        for field in FIELDS:
            tensors[f"groups.{name}.{field}"] = RawTensor.of(getattr(group.stack, field))
    tensors |= {f"extras.{key}": tensor for key, tensor in adapter.extras.items()}
    header = {
        "schema": SCHEMA,
        "tool": f"lotr_tn {_version()}",
        "groups": {name: _describe(group) for name, group in adapter.groups.items()},
        "source": dict(adapter.origin) | {"config": adapter.config_text},
    }
    metadata = {METADATA_KEY: json.dumps(header)}  # one key: the writer keeps no order
    write_file(path, lambda file: write_safetensors(file, tensors, metadata), force=force)


def _version() -> str:
    try:
        return version("lotr-tn")
    except PackageNotFoundError:
        return "unknown"


def _describe(group: LoTRGroup) -> dict[str, Any]:
    certificate = group.stack.certificate
    return {
        "shape": list(group.shape),
        "ranks": list(group.stack.ranks),
        "dtype": group.stack.core.dtype.name,
        "modules": [
            {
                "name": target.name,
                "rank": target.rank,
                "layout": target.layout.kind,
                "kernel": list(target.layout.kernel),
                "groups": target.layout.groups,
            }
            for target in group.targets
        ],
        "certificate": None
        if certificate is None
        else {
            "relative_error": certificate.relative_error,
            "layer_distances": [float(d) for d in np.asarray(certificate.distances)],
            "layer_norms": list(certificate.layer_norms),
            "lower": float(certificate.lower),
            "upper": float(certificate.upper),
            "method": certificate.method,
            "sweeps": certificate.sweeps,
        },
    }


def load_native(path: Path) -> LoTRAdapter:
    """Read the native file; arrays stay mapped until they are used.

    Raises:
        CheckpointError: the file is damaged, of a later schema, or its parts disagree.
    """
    tensors, metadata = read_safetensors(path)
    try:
        header = json.loads(metadata[METADATA_KEY])
        schema = header["schema"]
        if schema != SCHEMA:
            raise CheckpointError(
                f"{path} has schema {schema}; this version reads {SCHEMA}: upgrade lotr-tn"
            )
        groups = {
            name: _group(name, described, tensors, path)
            for name, described in header["groups"].items()
        }
        origin = {k: v for k, v in header["source"].items() if k != "config"}
        text = header["source"]["config"]
    except CheckpointError:
        raise
    except LotrError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} has a damaged header ({type(error).__name__}: {error}); copy it again"
        ) from None
    extras = {
        key.removeprefix("extras."): tensor
        for key, tensor in tensors.items()
        if key.startswith("extras.")
    }
    known = {f"groups.{name}.{field}" for name in groups for field in FIELDS}
    strange = [k for k in tensors if not k.startswith("extras.") and k not in known]
    if strange:
        raise CheckpointError(f"{path}: unknown key {strange[0]!r}; needed groups.* or extras.*")
    return LoTRAdapter(groups, extras, text, origin, path)


def _group(
    name: str, described: Mapping[str, Any], tensors: Mapping[str, RawTensor], path: Path
) -> LoTRGroup:
    arrays = {}
    for field in FIELDS:
        key = f"groups.{name}.{field}"
        if key not in tensors or not tensors[key].is_float:
            raise CheckpointError(f"{path} has no tensor {key} of floats; copy it again")
        arrays[field] = tensors[key].array()
        if not np.isfinite(arrays[field].astype(np.float32, copy=False)).all():
            raise CheckpointError(
                f"{path}: {key} holds NaN or infinite entries; the file is broken"
            )
    targets = tuple(
        Target(
            entry["name"],
            Layout(entry["layout"], tuple(entry["kernel"]), int(entry["groups"])),
            int(entry["rank"]),
        )
        for entry in described["modules"]
    )
    stack = Tucker2(**arrays, certificate=_certificate(described["certificate"]))
    if list(stack.shape) != described["shape"]:
        raise CheckpointError(
            f"{path}: group {name} is said to be {described['shape']} and is {list(stack.shape)}"
        )
    return LoTRGroup(name, targets, stack)


def _certificate(described: Mapping[str, Any] | None) -> Certificate | None:
    if described is None:
        return None
    return Certificate(
        np.asarray(described["layer_distances"], dtype=np.float64),
        np.asarray(described["layer_norms"], dtype=np.float64),
        np.float64(described["lower"]),
        np.float64(described["upper"]),
        str(described["method"]),
        int(described["sweeps"]),
    )
