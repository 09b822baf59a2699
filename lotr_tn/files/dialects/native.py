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
)
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.adapters.storage import format_of, group_form, stored_ranks
from lotr_tn.analysis.forms import LOTR, Form, known_form
from lotr_tn.coding.directions import decode_directions
from lotr_tn.errors import CheckpointError, OptionError
from lotr_tn.files.certificates import FIGURES, CertificateReader, described, rows_of
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
    table,
    text,
    told_once,
    whole_number,
    whole_numbers,
)
from lotr_tn.files.packed_tensors import PackedTensors
from lotr_tn.files.packing import packed
from lotr_tn.formats import Certificate

METADATA_KEY = "lotr"

CODED, OTHERS = "coded", "others"
"""The tensors of all groups in bits, one after another, and of packed tensors that are no updates.

In earlier files each group's bits are a tensor by themselves."""

EXTRAS = "extras."
"""What keys of tensors that are no updates, and are not packed, begin with."""


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
    """The tensors of a native file, and its text: packed, where anything else is in bits."""
    tensors, bits = _other_tensors(adapter.extras), []
    for name, group in adapter.groups.items():
        for field, array in _arrays(group).items():
            tensors[f"groups.{name}.{field}"] = RawTensor.of_finite(array, f"groups.{name}.{field}")
        bits += [group.coded] if isinstance(group, LoTRGroup) and group.coded is not None else []
    if bits:
        tensors[CODED] = RawTensor.of_bytes(b"".join(bits))
    figures = rows_of([group.certificate for group in adapter.groups.values()])
    if figures.size:
        tensors[FIGURES] = figures
    entries = {key: Entry.of_raw(tensor) for key, tensor in sorted(tensors.items())}
    text = json.dumps(_header(adapter), allow_nan=False, separators=(",", ":"))
    return entries, packed(text) if {CODED, OTHERS} & tensors.keys() else text


def _other_tensors(extras: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    if isinstance(extras, PackedTensors):
        return {OTHERS: extras.stream}
    return {f"{EXTRAS}{key}": tensor for key, tensor in extras.items()}


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
    extras = adapter.extras
    return {
        "schema": SCHEMA,
        "tool": tool_version(),
        "groups": {name: _describe(group) for name, group in adapter.groups.items()},
        "source": dict(adapter.origin) | {"config": packed(adapter.config_text)},
        **({OTHERS: extras.description()} if isinstance(extras, PackedTensors) else {}),
    }


def _arrays(group: LoTRGroup | LoRAGroup) -> dict[str, np.ndarray]:
    """The tensors of a group by field; a group kept as it is has its modules' side by side."""
    if isinstance(group, LoTRGroup):
        if group.coded is not None:
            return {}
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
        **_described_bits(group),
        **told_once(modules),
        "certificate": described(group.certificate),
    }


def _described_bits(group: LoTRGroup | LoRAGroup) -> dict[str, int]:
    if isinstance(group, LoRAGroup) or group.coded is None:
        return {}
    return {"coding": CODING, "bytes": len(group.coded)}


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
    said = table("the groups", header["groups"])
    require(bool(said), "there is no group")
    reader = _Reader(container)
    groups = {name: reader.group(name, table(f"group {name}", one)) for name, one in said.items()}
    _require_each_once(groups)
    extras = reader.others(header.get(OTHERS))
    reader.require_all_used()
    return LoTRAdapter(groups, extras, config, origin, path, bool(container.checksums))


def _require_each_once(groups: Mapping[str, LoTRGroup | LoRAGroup]) -> None:
    paths = Counter(target.name for group in groups.values() for target in group.targets)
    twice = [name for name, times in paths.items() if times > 1]
    require(not twice, f"it names the module {twice and twice[0]} twice")


class _Reader:
    """The tensors of a native file, each of which must be used."""

    def __init__(self, container: Container) -> None:
        self.container, self.used = container, set[str]()
        self.certificates = CertificateReader(self.maybe(FIGURES))
        self.bits_read = 0

    def maybe(self, key: str) -> RawTensor | None:
        """A tensor, if there is one."""
        self.used.add(key)
        return self.container.tensors.get(key)

    def finite(self, key: str) -> np.ndarray:
        """The entries of a tensor of floats."""
        tensor, path = self.maybe(key), self.container.path
        if tensor is None or not tensor.is_float:
            raise CheckpointError(f"{path} has no tensor {key} of floats; copy it again")
        array = tensor.array()
        if not is_finite(array):
            raise CheckpointError(
                f"{path}: {key} holds NaN or infinite entries; the file is broken"
            )
        return array

    def group(self, name: str, said: Mapping[str, Any]) -> LoTRGroup | LoRAGroup:
        """One group."""
        form = _form(name, said, self.container.path)
        shape = tuple(whole_numbers(f"the shape of {name}", said["shape"]))
        require(len(shape) == 3, f"the shape of {name} is {list(shape)}, not that of a stack")
        require_shape(name, shape)
        modules = modules_of(name, said)
        fits = len(modules) == shape[0]
        require(fits, f"{name} names {len(modules)} modules for {shape[0]} layers")
        ranks = whole_numbers(f"a rank of {name}", said["ranks"])
        geometry = whole_numbers(f"the geometry of {name}", said.get("geometry", []))
        targets = tuple(_target(one, (shape[1], shape[2])) for one in modules)
        certificate = self.certificates.next(name, said["certificate"], len(targets))
        coded = self.bits(name, said, form) if "coding" in said else None
        if coded is None:
            arrays = {field: self.finite(f"groups.{name}.{field}") for field in form.fields}
        else:
            arrays = _decoded(name, coded, shape, ranks)
        if form.kept:
            scales = [finite_number("a scale", one["scale"], negative=True) for one in modules]
            group = LoRAGroup(name, _modules(targets, scales, arrays), certificate)
        else:
            stack = form.stack_of(arrays, [*ranks, *geometry], certificate)
            group = LoTRGroup(name, targets, stack, coded)
        _require_as_said(group, shape, ranks, said["dtype"])
        return group

    def bits(self, name: str, said: Mapping[str, Any], form: Form) -> bytes:
        """The bits of a group."""
        require_known_coding(said["coding"], f"{self.container.path}: group {name}")
        require(form.in_bits, f"{name} is coded, which a {form.name} cannot be")
        together = "bytes" in said
        key = CODED if together else f"groups.{name}.{CODED}"
        tensor = self.maybe(key)
        if tensor is None or tensor.code != "U8" or len(tensor.shape) != 1:
            raise CheckpointError(f"{self.container.path} has no bytes {key}; copy the file again")
        if not together:
            return tensor.data.tobytes()
        size = whole_number(f"the bytes of {name}", said["bytes"])
        first, self.bits_read = self.bits_read, self.bits_read + size
        require(self.bits_read <= tensor.nbytes, f"{name} has no bits")
        return tensor.data[first : self.bits_read].tobytes()

    def others(self, said: Any) -> Mapping[str, RawTensor]:
        """The tensors that are no updates."""
        if said is not None:
            stream = self.maybe(OTHERS)
            require(stream is not None and stream.code == "U8", f"there are no bytes {OTHERS}")
            assert stream is not None
            return PackedTensors.of_description(table("the other tensors", said), stream)
        known = [key for key in self.container.tensors if key.startswith(EXTRAS)]
        self.used.update(known)
        return {key.removeprefix(EXTRAS): self.container.tensors[key] for key in known}

    def require_all_used(self) -> None:
        """Refuse what is not spoken of."""
        for key in self.container.tensors:
            if key not in self.used:
                raise CheckpointError(
                    f"{self.container.path}: unknown key {key!r}; needed groups.* or extras.*"
                )
        bits = self.container.tensors.get(CODED)
        require(bits is None or bits.nbytes == self.bits_read, "there are bits of no group")
        self.certificates.require_all_used()


def _require_as_said(
    group: LoTRGroup | LoRAGroup, shape: tuple[int, ...], ranks: list[int], dtype: Any
) -> None:
    name = group.name
    said = shape, ranks, dtype_name(f"the dtype of {name}", dtype)
    found = tuple(group.shape), stored_ranks(group), group.dtype
    for what, one, other in zip(("shape", "ranks", "dtype"), said, found, strict=True):
        require(one == other, f"the {what} of {name} is said to be {one} and is {other}")


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
