"""Whether the header of a bank makes sense: a digest tells only that it is the one written."""

import math
from collections.abc import Iterator, Mapping
from typing import get_args

import numpy as np

from lotr_tn._arrays import UNIT_ROUNDOFF
from lotr_tn.adapters.adapter import Layout
from lotr_tn.analysis.forms import FORMS
from lotr_tn.banks.bank import Bank, Stacking
from lotr_tn.banks.coded import CODED, CodedBasis
from lotr_tn.banks.group import ADAPTER, LENGTH, MODULE, RANK, SCALE, TERMS, BankGroup, Part
from lotr_tn.banks.layout import row_shapes
from lotr_tn.files.header import SenseError, require, require_layout, require_shape


def require_sense(bank: Bank) -> None:
    """Refuse, by a SenseError, a bank whose parts do not fit; no large tensor is read."""
    require(isinstance(bank.asked, Mapping), "what was asked for is no table of names")
    require(isinstance(bank.explanation, Mapping), "the explanation is no table of names")
    asked = bank.asked.get("relative_error")
    fits = asked is None or (type(asked) in (int, float) and 0 <= asked < math.inf)
    require(fits, f"the error that was asked for is {asked!r}")
    require(bank.stacking in get_args(Stacking), f"the stacking is {bank.stacking!r}")
    _require_adapters(bank)
    known: dict[str, tuple[tuple[int, int], Layout]] = {}
    for group in bank.groups.values():
        _require_modules(group, known)
        _require_bases(group)
        for part in group.parts:
            _require_part(group, part, len(bank.adapters))
    _require_each_once(bank, list(known))


def _require_adapters(bank: Bank) -> None:
    names = bank.names
    require(bool(names), "there is no adapter")
    require(len(set(names)) == len(names), "two adapters have one name")
    for adapter in bank.adapters:
        require(bool(adapter.name), "an adapter has no name")
        require(adapter.dtype in UNIT_ROUNDOFF, f"the dtype of {adapter.name} is {adapter.dtype}")
        config = bank.contents[adapter.config]
        fits = config.dtype == "uint8" and len(config.shape) == 1
        require(fits, f"the configuration of {adapter.name} is no text")


def _require_modules(group: BankGroup, known: dict[str, tuple[tuple[int, int], Layout]]) -> None:
    require_shape(group.name, group.shape)
    paths = [path for path, _ in group.modules]
    require(bool(paths), f"{group.name} has no module")
    require(len(set(paths)) == len(paths), f"{group.name} names a module twice")
    for path, layout in group.modules:
        require_layout(path, group.shape, layout)
        first = known.setdefault(path, (group.shape, layout))
        require(first == (group.shape, layout), f"{path} has two shapes or layouts")


def _require_bases(group: BankGroup) -> None:
    m, n = group.shape
    require(bool(group.parts), f"{group.name} holds no layers")
    for sizes, tensors in ((m, group.outputs), (n, group.inputs)):
        for tensor in tensors:
            fits = len(tensor.shape) == 2 and tensor.shape[0] == sizes
            require(fits, f"a basis of {group.name} has the shape {list(tensor.shape)}")
    bases = (*group.outputs, *group.inputs)
    _require_one_dtype(f"the bases of {group.name}", {tensor.dtype for tensor in bases})


def _require_one_dtype(what: str, dtypes: set[str]) -> None:
    require(dtypes <= set(UNIT_ROUNDOFF), f"{what} are of {', '.join(sorted(dtypes))}")
    require(len(dtypes) < 2, f"{what} are of {' and '.join(sorted(dtypes))}")


def _require_part(group: BankGroup, part: Part, adapters: int) -> None:
    name, index, figures = group.name, part.index, part.figures
    layers = index.shape[0]
    fits = index.ndim == 2 and layers > 0 and index.shape[1] == LENGTH + 1
    require(fits, f"the index of {name} has the shape {list(index.shape)}")
    require(
        figures.shape == (layers, 4),
        f"the figures of {name} have the shape {list(figures.shape)} for {layers} layers",
    )
    require(bool((index >= 0).all()), f"the index of {name} holds a negative number")
    for column, what, limit in (
        (ADAPTER, "adapter", adapters),
        (MODULE, "module", len(group.modules)),
    ):
        largest = int(index[:, column].max())
        require(largest < limit, f"{name} has a layer of {what} {largest}, and there are {limit}")
    place = index[:, ADAPTER] * len(group.modules) + index[:, MODULE]
    require(bool((np.diff(place) > 0).all()), f"the layers of {name} are out of order")
    require(bool(np.isfinite(figures).all()), f"the figures of {name} are not finite")
    others = np.delete(figures, SCALE, axis=1)
    require(bool((others >= 0).all()), f"the figures of {name} hold a negative norm")
    form = FORMS[part.format]
    own = not form.shares
    most = len(group.outputs)
    fits = part.segments == 0 if own else 0 < part.segments <= most
    require(fits, f"layers of {name} use {part.segments} segments of {most}")
    if part.is_coded:
        _require_bits(group, part)
    else:
        _require_shapes(group, part)
    if form.kept:
        _require_ranks(group, part)
    shared = () if own else (*group.outputs, *group.inputs)
    dtypes = {tensor.dtype for tensor in shared} | part.dtypes
    _require_one_dtype(f"the layers of {name}", dtypes)


def _require_bits(group: BankGroup, part: Part) -> None:
    """Bytes, as many as all layers have; cores in bits lie between bases in bits."""
    held, needed = part.tensors[CODED].entry.nbytes, int(part.index[:, LENGTH].sum())
    require(held == needed, f"the layers of {group.name} have {needed} bytes, and there are {held}")
    form = FORMS[part.format]
    able = form.own == ("core",) if form.shares else form.in_bits
    require(able, f"{group.name} is coded, which a {form.name} cannot be")
    if form.shares:
        bases = (*group.outputs[: part.segments], *group.inputs[: part.segments])
        fits = all(isinstance(one, CodedBasis) for one in bases)
        require(fits, f"cores of {group.name} are in bits, and its bases are not")


def _require_shapes(group: BankGroup, part: Part) -> None:
    counts = len(part.index), int(part.index[:, TERMS].sum())
    sides = {"out": group.outputs, "in": group.inputs}
    widths = {
        side: sum(tensor.shape[1] for tensor in tensors[: part.segments])
        for side, tensors in sides.items()
    }
    needed = row_shapes(FORMS[part.format], group.shape, counts, widths)
    for name, tensor in part.tensors.items():
        require(
            tensor.shape == needed[name],
            f"{name} of {group.name} has the shape {list(tensor.shape)} where "
            f"{list(needed[name])} is needed",
        )


def _require_ranks(group: BankGroup, part: Part) -> None:
    """LoRAs that are kept have all of their rank terms, a whole number for each group of a conv."""
    ranks = part.index[:, RANK]
    groups = np.array([layout.groups for _, layout in group.modules])[part.index[:, MODULE]]
    fits = bool((ranks == part.index[:, TERMS]).all() and (ranks % groups == 0).all())
    require(fits, f"{group.name} keeps a LoRA in another rank than it had")


def _require_each_once(bank: Bank, paths: list[str]) -> None:
    """Every adapter has a layer, and no two of one module."""
    places = np.concatenate([np.zeros(0, dtype=np.int64), *_places(bank, paths)])
    owners = places // max(len(paths), 1)
    values, counts = np.unique(places, return_counts=True)
    if values.size < places.size:
        owner, module = divmod(int(values[counts > 1][0]), len(paths))
        raise SenseError(f"{bank.names[owner]} has two updates of {paths[module]}")
    missing = np.setdiff1d(np.arange(len(bank)), owners)
    if missing.size:
        raise SenseError(f"{bank.names[int(missing[0])]} updates no module")


def _places(bank: Bank, paths: list[str]) -> Iterator[np.ndarray]:
    number = {path: at for at, path in enumerate(paths)}
    for group in bank.groups.values():
        mine = np.array([number[path] for path, _ in group.modules], dtype=np.int64)
        for part in group.parts:
            yield part.index[:, ADAPTER] * len(paths) + mine[part.index[:, MODULE]]
