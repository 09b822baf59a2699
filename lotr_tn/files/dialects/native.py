"""The native file: one safetensors file with shared factors, cores, extras and the certificate."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from lotr_tn._arrays import is_finite
from lotr_tn.adapters.adapter import (
    LoRAAdapter,
    LoRAGroup,
    LoRAModule,
    LoTRAdapter,
    LoTRGroup,
    Target,
    is_coded,
)
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.adapters.storage import format_of, group_form, stored_ranks
from lotr_tn.analysis.forms import LOTR, Form, known_form
from lotr_tn.coding.directions import decode_directions
from lotr_tn.errors import CheckpointError, OptionError
from lotr_tn.files.container import (
    Container,
    Entry,
    container_size,
    read_container,
    write_digested,
)
from lotr_tn.files.dialects.contents import Contents
from lotr_tn.files.header import (
    CODING,
    SCHEMA,
    SenseError,
    config_text,
    described_layout,
    dtype_name,
    finite_number,
    layout_of,
    modules_of,
    read_header_of,
    require,
    require_known_coding,
    require_layout,
    require_shape,
    sequence,
    table,
    text,
    told_once,
    whole_number,
    whole_numbers,
)
from lotr_tn.files.packing import packed
from lotr_tn.formats import Certificate

METADATA_KEY = "lotr"

FIGURE = 24
"""Bytes of the longest float64, written in full."""


def is_native(contents: Contents) -> bool:
    """Whether it is one safetensors file with our metadata."""
    return METADATA_KEY in contents.metadata


def save_native(adapter: LoTRAdapter, path: Path, *, force: bool) -> None:
    """Write the native file, all or nothing."""
    try:
        _require_each_once(adapter.groups)
        entries, text = _written(adapter)
    except (SenseError, ValueError) as error:  # it could not be read again
        raise CheckpointError(f"{path} was not written, since {error}") from None
    write_digested(path, entries, text, force=force, key=METADATA_KEY)


def native_size(adapter: LoTRAdapter) -> int:
    """The bytes of the file that `save_native` writes."""
    return container_size(*_written(adapter), METADATA_KEY)


def _written(adapter: LoTRAdapter) -> tuple[dict[str, Entry], str]:
    """The tensors of a native file, and its text."""
    tensors = {f"extras.{key}": tensor for key, tensor in adapter.extras.items()}
    for name, group in adapter.groups.items():
        for field, array in _arrays(group).items():
            tensors[f"groups.{name}.{field}"] = RawTensor.of_finite(array, f"groups.{name}.{field}")
    entries = {key: Entry.of_raw(tensor) for key, tensor in sorted(tensors.items())}
    return entries, _text(_header(adapter))


def tool_version() -> str:
    """The name and version of this package, as files carry it."""
    try:
        return f"lotr_tn {version('lotr-tn')}"
    except PackageNotFoundError:
        return "lotr_tn, unknown version"


def native_least(adapter: LoRAAdapter, groups: Mapping[str, LoRAGroup], group_by: str) -> int:
    """Bytes, at least, of a native file with these groups: their own, where all are kept."""
    kept = {}
    for name, group in groups.items():
        nothing = np.zeros(group.shape[0])
        certificate = Certificate(nothing, nothing, np.float64(0), np.float64(0), "", 0)
        kept[name] = replace(group, certificate=certificate)
    return native_size(LoTRAdapter.of_lora(adapter, kept, group_by))


def _header(adapter: LoTRAdapter) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "tool": tool_version(),
        "groups": {name: _describe(group) for name, group in adapter.groups.items()},
        "source": dict(adapter.origin) | {"config": packed(adapter.config_text)},
    }


def room_for_figures(value: Any) -> str:
    """Blanks for what a JSON value's floats could be longer, so that last bits change no size."""
    short: list[int] = []
    json.loads(json.dumps(value), parse_float=lambda figure: short.append(FIGURE - len(figure)))
    return " " * sum(short)


def _text(header: Mapping[str, Any]) -> str:
    certificates = [group["certificate"] for group in header["groups"].values()]
    text = json.dumps(header, allow_nan=False, separators=(",", ":"))
    return text + room_for_figures(certificates)


def _fields(group: LoTRGroup | LoRAGroup) -> tuple[str, ...]:
    """The names of a group's tensors."""
    return ("coded",) if is_coded(group) else group_form(group).fields


def _arrays(group: LoTRGroup | LoRAGroup) -> dict[str, np.ndarray]:
    """The tensors of a group by field; a group kept as it is has its modules' side by side."""
    if isinstance(group, LoTRGroup):
        if group.coded is not None:
            return {"coded": np.frombuffer(group.coded, np.uint8)}
        return dict(group_form(group).arrays_of(group.stack))
    return {
        "up": np.concatenate([module.up for module in group.modules], axis=1),
        "down": np.concatenate([module.down for module in group.modules], axis=0),
    }


def _describe(group: LoTRGroup | LoRAGroup) -> dict[str, Any]:
    scales = [module.scale for module in group.modules] if isinstance(group, LoRAGroup) else []
    modules = [
        {"name": target.name, "rank": target.rank, **described_layout(target.layout)}
        for target in group.targets
    ]
    for module, scale in zip(modules, scales, strict=False):
        module["scale"] = scale
    geometry = [] if isinstance(group, LoRAGroup) else list(group_form(group).geometry(group.stack))
    return {
        "format": format_of(group),
        "shape": list(group.shape),
        "ranks": stored_ranks(group),
        **({"geometry": geometry} if geometry else {}),
        "dtype": group.dtype,
        **({"coding": CODING} if is_coded(group) else {}),
        **told_once(modules),
        "certificate": _describe_certificate(group.certificate),
    }


def _describe_certificate(certificate: Certificate | None) -> dict[str, Any] | None:
    if certificate is None:
        return None
    said = {
        "layer_norms": list(certificate.layer_norms),
        "method": certificate.method,
        "sweeps": certificate.sweeps,
    }
    if not certificate.relative_error and not certificate.upper:
        return said  # nothing was lost
    return {
        **said,
        "relative_error": certificate.relative_error,
        "layer_distances": [float(d) for d in np.asarray(certificate.distances)],
        "lower": float(certificate.lower),
        "upper": float(certificate.upper),
    }


def load_native(path: Path) -> LoTRAdapter:
    """Read the native file, of this schema or an older one; arrays stay mapped until used."""
    container = read_container(path, METADATA_KEY, may_lack_digests=True)
    return read_header_of(container, "a file", lambda header: _adapter(container, header))


def _adapter(container: Container, header: Mapping[str, Any]) -> LoTRAdapter:
    path, source = container.path, table("the source", header["source"])
    origin = {key: value for key, value in source.items() if key != "config"}
    if "dtype" in origin:
        dtype_name("the dtype of the source", origin["dtype"])
    config = config_text("the configuration", source["config"])
    described = table("the groups", header["groups"])
    require(bool(described), "there is no group")
    groups = {
        name: _group(name, table(f"group {name}", group), container)
        for name, group in described.items()
    }
    _require_each_once(groups)
    known = {f"groups.{name}.{field}" for name, group in groups.items() for field in _fields(group)}
    extras = {}
    for key, tensor in container.tensors.items():
        if key.startswith("extras."):
            extras[key.removeprefix("extras.")] = tensor
        elif key not in known:
            raise CheckpointError(f"{path}: unknown key {key!r}; needed groups.* or extras.*")
    return LoTRAdapter(groups, extras, config, origin, path, bool(container.checksums))


def _require_each_once(groups: Mapping[str, LoTRGroup | LoRAGroup]) -> None:
    paths = Counter(target.name for group in groups.values() for target in group.targets)
    twice = [name for name, times in paths.items() if times > 1]
    require(not twice, f"it names the module {twice and twice[0]} twice")


def _group(name: str, described: Mapping[str, Any], container: Container) -> LoTRGroup | LoRAGroup:
    form = _form(name, described, container.path)
    shape = tuple(whole_numbers(f"the shape of {name}", described["shape"]))
    require(len(shape) == 3, f"the shape of {name} is {list(shape)}, not that of a stack")
    require_shape(name, shape)
    modules = modules_of(name, described)
    require(len(modules) == shape[0], f"{name} names {len(modules)} modules for {shape[0]} layers")
    ranks = whole_numbers(f"a rank of {name}", described["ranks"])
    geometry = whole_numbers(f"the geometry of {name}", described.get("geometry", []))
    targets = tuple(_target(one, (shape[1], shape[2])) for one in modules)
    certificate = _certificate(name, described["certificate"], len(targets))
    coded = _coded(name, described["coding"], form, container) if "coding" in described else None
    if coded is None:
        arrays = {f: _finite(f"groups.{name}.{f}", container) for f in form.fields}
    else:
        arrays = _decoded(name, coded, shape, ranks)
    if form.kept:
        scales = [finite_number("a scale", one["scale"], negative=True) for one in modules]
        group = LoRAGroup(name, _modules(targets, scales, arrays), certificate)
    else:
        group = LoTRGroup(
            name, targets, form.stack_of(arrays, [*ranks, *geometry], certificate), coded
        )
    said = shape, ranks, dtype_name(f"the dtype of {name}", described["dtype"])
    found = tuple(group.shape), stored_ranks(group), group.dtype
    for what, one, other in zip(("shape", "ranks", "dtype"), said, found, strict=True):
        require(one == other, f"the {what} of {name} is said to be {one} and is {other}")
    return group


def _form(name: str, described: Mapping[str, Any], path: Path) -> Form:
    # the only one there was, and not named, at first
    named = text(f"the format of {name}", described.get("format", LOTR.name))
    try:
        form = known_form(named)
    except OptionError as error:
        raise CheckpointError(f"{path}: group {name} is a {named!r}, and {error}") from None
    if form is None:
        raise CheckpointError(
            f"{path}: group {name} has the unknown format {named!r}; upgrade lotr-tn, or install "
            "the package that the format is of"
        )
    return form


def _target(module: Mapping[str, Any], shape: tuple[int, int]) -> Target:
    path, layout = text("the name of a module", module["name"]), layout_of(module)
    require_layout(path, shape, layout)
    rank = whole_number(f"the rank of {path}", module["rank"])
    require(rank % layout.groups == 0, f"{path} has rank {rank} in {layout.groups} groups")
    return Target(path, layout, rank)


def _finite(key: str, container: Container) -> np.ndarray:
    tensors, path = container.tensors, container.path
    if key not in tensors or not tensors[key].is_float:
        raise CheckpointError(f"{path} has no tensor {key} of floats; copy it again")
    array = tensors[key].array()
    if not is_finite(array):
        raise CheckpointError(f"{path}: {key} holds NaN or infinite entries; the file is broken")
    return array


def _coded(name: str, version: Any, form: Form, container: Container) -> bytes:
    """The bits of a group."""
    require_known_coding(version, f"{container.path}: group {name}")
    require(form.in_bits, f"{name} is coded, which a {form.name} cannot be")
    tensor = container.tensors.get(f"groups.{name}.coded")
    if tensor is None or tensor.code != "U8" or len(tensor.shape) != 1:
        raise CheckpointError(
            f"{container.path} has no bytes groups.{name}.coded; copy the file again"
        )
    return tensor.data.tobytes()


def _decoded(
    name: str, coded: bytes, shape: tuple[int, ...], ranks: list[int]
) -> dict[str, np.ndarray]:
    """The arrays of a group that is stored in bits."""
    require(len(ranks) == shape[0], f"{name} has {len(ranks)} ranks for {shape[0]} layers")
    up, down = decode_directions(coded, (shape[1], shape[2]), sum(ranks))
    return {"up": up, "down": down}


def _modules(
    targets: tuple[Target, ...], scales: list[float], arrays: Mapping[str, np.ndarray]
) -> tuple[LoRAModule, ...]:
    """The modules of a group that was kept as it is, as views of its two tensors."""
    widths = [target.rank // target.layout.groups for target in targets]
    found = arrays["up"].shape[1], arrays["down"].shape[0]
    needed = sum(widths), sum(target.rank for target in targets)
    require(found == needed, f"the ranks of {targets[0].name} and its group do not fit")
    modules, column, row = [], 0, 0
    for target, width, scale in zip(targets, widths, scales, strict=True):
        up = arrays["up"][:, column : column + width]
        down = arrays["down"][row : row + target.rank, :]
        modules.append(LoRAModule(target, up, down, scale))
        column, row = column + width, row + target.rank
    return tuple(modules)


def _certificate(name: str, described: Any, layers: int) -> Certificate | None:
    if described is None:
        return None
    said = table(f"the certificate of {name}", described)
    lost = {"relative_error", "layer_distances", "lower", "upper"}
    exact = not lost & said.keys()  # nothing was lost

    def each(what: str) -> np.ndarray:
        values = sequence(f"{what} of {name}", said.get(what, [0.0] * layers if exact else None))
        require(len(values) == layers, f"{name} has {len(values)} {what} for {layers} layers")
        return np.array([finite_number(f"{what} of {name}", value) for value in values])

    def bound(what: str) -> np.float64:
        return np.float64(finite_number(f"{what} of {name}", 0.0 if exact else said[what]))

    finite_number(f"the error of {name}", 0.0 if exact else said["relative_error"])
    return Certificate(
        each("layer_distances"),
        each("layer_norms"),
        bound("lower"),
        bound("upper"),
        text(f"the method of {name}", said["method"]),
        whole_number(f"the sweeps of {name}", said["sweeps"]),
    )
