"""The native file: one safetensors file with shared factors, cores, extras and the certificate."""

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from lotr_tn.adapters.adapter import (
    Layout,
    LoRAAdapter,
    LoRAGroup,
    LoRAModule,
    LoTRAdapter,
    LoTRGroup,
    Target,
)
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.adapters.storage import format_of, group_form, stored_ranks
from lotr_tn.analysis.forms import FORMS, LOTR, known_form
from lotr_tn.errors import CheckpointError, LotrError, OptionError
from lotr_tn.files.dialects.contents import Contents
from lotr_tn.files.tensors import read_safetensors, write_safetensors
from lotr_tn.files.writing import write_file
from lotr_tn.formats import Certificate

METADATA_KEY = "lotr"
SCHEMA = 1

TENSOR_ENTRY = 160
"""Bytes of the header that one tensor's dtype, shape and place take, at most."""

FIGURE = 24
"""Bytes of the longest float64, written in full."""


def is_native(contents: Contents) -> bool:
    """Whether it is one safetensors file with our metadata."""
    return METADATA_KEY in contents.metadata


def save_native(adapter: LoTRAdapter, path: Path, *, force: bool) -> None:
    """Write the native file, all or nothing."""
    tensors: dict[str, RawTensor] = {}
    for name, group in adapter.groups.items():
        for field, array in _arrays(group).items():
            tensors[f"groups.{name}.{field}"] = RawTensor.of(array)
    tensors |= {f"extras.{key}": tensor for key, tensor in adapter.extras.items()}
    metadata = {METADATA_KEY: _text(_header(adapter))}  # one key: the writer keeps no order
    write_file(path, lambda file: write_safetensors(file, tensors, metadata), force=force)


def tool_version() -> str:
    """The name and version of this package, as files carry it."""
    try:
        return f"lotr_tn {version('lotr-tn')}"
    except PackageNotFoundError:
        return "lotr_tn, unknown version"


def native_overhead(adapter: LoRAAdapter, groups: Mapping[str, LoRAGroup], group_by: str) -> int:
    """Bytes, at most, of a native file beside its groups' numbers: other tensors, the header."""
    extreme = -1.2345678901234567e-123
    kept = {}
    for name, group in groups.items():
        each = np.full(group.shape[0], extreme)
        none = np.float64(extreme)
        certificate = Certificate(each, each, none, none, "randomised st-hosvd" * 2, 1000)
        kept[name] = replace(group, certificate=certificate)
    origin = {"format": "peft-lora", "dtype": adapter.dtype, "group_by": group_by}
    header = _header(LoTRAdapter(kept, adapter.extras, adapter.config_text, origin))
    for described, group in zip(header["groups"].values(), groups.values(), strict=True):
        described["ranks"] = [10**6] * (group.shape[0] + 2)
    most = max(len(form.fields) for form in FORMS.values())
    longest = max((field for form in FORMS.values() for field in form.fields), key=len)
    keys = [f"groups.{name}.{longest}" for name in groups for _ in range(most)]
    keys += [f"extras.{key}" for key in adapter.extras]
    entries = sum(len(json.dumps(key)) + TENSOR_ENTRY for key in keys)
    text = len(json.dumps(_text(header)))
    return text + entries + sum(tensor.data.nbytes for tensor in adapter.extras.values()) + 256


def _header(adapter: LoTRAdapter) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "tool": tool_version(),
        "groups": {name: _describe(group) for name, group in adapter.groups.items()},
        "source": dict(adapter.origin) | {"config": adapter.config_text},
    }


def room_for_figures(value: Any) -> str:
    """Blanks for what a JSON value's floats could be longer, so that last bits change no size."""
    short: list[int] = []
    json.loads(json.dumps(value), parse_float=lambda figure: short.append(FIGURE - len(figure)))
    return " " * sum(short)


def _text(header: Mapping[str, Any]) -> str:
    certificates = [group["certificate"] for group in header["groups"].values()]
    return json.dumps(header) + room_for_figures(certificates)


def _arrays(group: LoTRGroup | LoRAGroup) -> dict[str, np.ndarray]:
    """The tensors of a group by field; a group kept as it is has its modules' side by side."""
    if isinstance(group, LoTRGroup):
        return {field: getattr(group.stack, field) for field in group_form(group).fields}
    return {
        "up": np.concatenate([module.up for module in group.modules], axis=1),
        "down": np.concatenate([module.down for module in group.modules], axis=0),
    }


def _describe(group: LoTRGroup | LoRAGroup) -> dict[str, Any]:
    scales = [module.scale for module in group.modules] if isinstance(group, LoRAGroup) else []
    described = {
        "format": format_of(group),
        "shape": list(group.shape),
        "ranks": stored_ranks(group),
        "dtype": group.dtype,
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
        "certificate": _describe_certificate(group.certificate),
    }
    for module, scale in zip(described["modules"], scales, strict=False):
        module["scale"] = scale
    return described


def _describe_certificate(certificate: Certificate | None) -> dict[str, Any] | None:
    if certificate is None:
        return None
    return {
        "relative_error": certificate.relative_error,
        "layer_distances": [float(d) for d in np.asarray(certificate.distances)],
        "layer_norms": list(certificate.layer_norms),
        "lower": float(certificate.lower),
        "upper": float(certificate.upper),
        "method": certificate.method,
        "sweeps": certificate.sweeps,
    }


def load_native(path: Path) -> LoTRAdapter:
    """Read the native file, of this schema or an older one; arrays stay mapped until used."""
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
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path} has a damaged header ({type(error).__name__}: {error}); copy it again"
        ) from None
    extras = {
        key.removeprefix("extras."): tensor
        for key, tensor in tensors.items()
        if key.startswith("extras.")
    }
    known = {
        f"groups.{name}.{field}"
        for name, group in groups.items()
        for field in group_form(group).fields
    }
    strange = [k for k in tensors if not k.startswith("extras.") and k not in known]
    if strange:
        raise CheckpointError(f"{path}: unknown key {strange[0]!r}; needed groups.* or extras.*")
    return LoTRAdapter(groups, extras, text, origin, path)


def _group(
    name: str, described: Mapping[str, Any], tensors: Mapping[str, RawTensor], path: Path
) -> LoTRGroup | LoRAGroup:
    named = described.get("format", LOTR.name)  # the only one there was, and not named, at first
    try:
        form = known_form(named)
    except OptionError as error:
        raise CheckpointError(f"{path}: group {name} is a {named!r}, and {error}") from None
    if form is None:
        raise CheckpointError(
            f"{path}: group {name} has the unknown format {named!r}; upgrade lotr-tn, or install "
            "the package that the format is of"
        )
    arrays = {field: _finite(f"groups.{name}.{field}", tensors, path) for field in form.fields}
    targets = tuple(
        Target(
            entry["name"],
            Layout(entry["layout"], tuple(entry["kernel"]), int(entry["groups"])),
            int(entry["rank"]),
        )
        for entry in described["modules"]
    )
    certificate = _certificate(described["certificate"])
    if form.kept:
        scales = [float(entry["scale"]) for entry in described["modules"]]
        group = LoRAGroup(name, _modules(targets, scales, arrays, path), certificate)
    else:
        stack = form.stack_of(arrays, [int(r) for r in described["ranks"]], certificate)
        group = LoTRGroup(name, targets, stack)
    if list(group.shape) != described["shape"]:
        raise CheckpointError(
            f"{path}: group {name} is said to be {described['shape']} and is {list(group.shape)}"
        )
    return group


def _finite(key: str, tensors: Mapping[str, RawTensor], path: Path) -> np.ndarray:
    if key not in tensors or not tensors[key].is_float:
        raise CheckpointError(f"{path} has no tensor {key} of floats; copy it again")
    array = tensors[key].array()
    if not np.isfinite(array.astype(np.float32, copy=False)).all():
        raise CheckpointError(f"{path}: {key} holds NaN or infinite entries; the file is broken")
    return array


def _modules(
    targets: tuple[Target, ...], scales: list[float], arrays: Mapping[str, np.ndarray], path: Path
) -> tuple[LoRAModule, ...]:
    """The modules of a group that was kept as it is, as views of its two tensors."""
    widths = [target.rank // target.layout.groups for target in targets]
    found = arrays["up"].shape[1], arrays["down"].shape[0]
    if found != (sum(widths), sum(target.rank for target in targets)) or not targets:
        which = f"{targets[0].name} and its group" if targets else "a group without modules"
        raise CheckpointError(f"{path}: the ranks of {which} do not fit; copy it again")
    modules, column, row = [], 0, 0
    for target, width, scale in zip(targets, widths, scales, strict=True):
        up = arrays["up"][:, column : column + width]
        down = arrays["down"][row : row + target.rank, :]
        modules.append(LoRAModule(target, up, down, scale))
        column, row = column + width, row + target.rank
    return tuple(modules)


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
