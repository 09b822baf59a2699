"""TT-LoRA checkpoints: for each module its cores, `….query.ttlora_cores.N` of shape (r, d, r').

The files of the method hold cores alone. What they leave out is read from a configuration beside
them, `adapter_config.json` or one of the file's name, or from the metadata of safetensors: `alpha`
(which multiplies the update, and is divided by no rank), `weight_shape` (out, in) where modules are
not square, and `variant`, `reconstruction` or `contraction` (see `lotr_tn.ops.tt_lora`).
"""

import itertools
import math
import operator
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from lotr_tn._arrays import LARGEST, is_finite, narrow
from lotr_tn.adapters.adapter import Layout, LoTRAdapter, LoTRGroup, Target, common_dtype
from lotr_tn.adapters.as_lora import config_text
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.catalogue.grouping import group_paths
from lotr_tn.errors import CheckpointError, LotrError, listed
from lotr_tn.files.dialects.contents import Contents
from lotr_tn.files.json_text import json_object, json_text
from lotr_tn.files.peft_keys import PREFIX
from lotr_tn.files.tensors import read_header
from lotr_tn.files.weights import CONFIG, PICKLES, read_weights
from lotr_tn.formats import TensorTrain
from lotr_tn.ops.arithmetic import scale
from lotr_tn.ops.moving import astype
from lotr_tn.ops.tt_lora import ORDERS, Order, tt_lora

MARK = ".ttlora_cores."
KEY = re.compile(r"(?P<module>.+)\.ttlora_cores\.(?P<index>\d{1,4})")
ALPHA = ("alpha", "ttlora_alpha", "tt_alpha", "lora_alpha")
VARIANT = ("variant", "order")
WRAPPED = re.compile(r"(?:base_model\.model\.)?(?:model\.(?=(?:model|\w*bert\w*|transformer)\.))?")
"""What PEFT and Lightning put before a path in the model."""

LOOKED_AT = 1 << 20
"""Bytes of a file's beginning, or of its table of names, that tell whether it is of the method."""

PUBLISHED = {
    ((12, 8, 8, 2, 2, 2, 8, 12), 4): 8.0,
    ((16, 8, 8, 4, 4, 8, 8, 16), 4): 8.0,
}
"""α of the adapters that ScalableTTLoRA published, by legs and rank: their files say none."""


def is_tt_lora(contents: Contents) -> bool:
    """Whether a file of weights names cores of the method."""
    weights = contents.weights
    if weights is None or str(contents.config.get("peft_type")) == "LORA":
        return False
    try:
        if weights.suffix in PICKLES:
            return MARK.encode() in _names_in(weights)
        return any(MARK in key for key in read_header(weights, only=True)[0])
    except Exception:  # a foreign parser may raise anything on foreign bytes
        return False  # the reader of another dialect says what is wrong with them


def _names_in(weights: Path) -> bytes:
    """The part of a torch file that names its tensors, without unpickling it."""
    if not zipfile.is_zipfile(weights):
        with open(weights, "rb") as file:
            return file.read(LOOKED_AT)
    with zipfile.ZipFile(weights) as archive:
        tables = [name for name in archive.namelist() if name.endswith("data.pkl")]
        with archive.open(tables[0]) if tables else open(os.devnull, "rb") as table:
            return table.read(LOOKED_AT)


def load_tt_lora(path: str | os.PathLike[str]) -> LoTRAdapter:
    """Read TT-LoRA cores as trains, a group for each kind of module, α inside.

    Raises:
        CheckpointError: cores are missing or do not fit together, or nothing says α or the shape of
            the modules.
    """
    contents = Contents(Path(path))
    weights = contents.weights
    assert weights is not None
    reader = _Reader(weights, _settings(contents))
    cores, extras = reader.modules(read_weights(weights))
    alpha, notes = reader.alpha(cores)
    shapes = [(name, reader.shape(name, parts)) for name, parts in cores.items()]
    groups = {}
    for name, members in group_paths(shapes, "kind").items():
        paths = [shapes[index][0] for index in members]
        stack = reader.stack(name, [cores[path] for path in paths], shapes[members[0]][1], alpha)
        rank = (1, *stack.ranks, 1)[stack.middle or 0]
        groups[name] = LoTRGroup(
            name, tuple(Target(path, Layout("linear"), rank) for path in paths), stack
        )
    dtype = common_dtype({group.dtype for group in groups.values()})
    origin = {"format": "tt-lora", "dtype": dtype, "group_by": "kind", "notes": notes}
    config = config_text(_as_lora(reader.settings, groups, extras))
    return LoTRAdapter(groups, extras, config, origin, Path(path))


def _settings(contents: Contents) -> dict[str, Any]:
    """What metadata and the configuration say; the latter first."""
    path = contents.path
    folder = path if path.is_dir() else path.parent
    beside = [folder / CONFIG] if path.is_dir() else [path.with_suffix(".json"), folder / CONFIG]
    found: dict[str, Any] = dict(contents.metadata)
    for file in beside:
        if file.exists():
            return found | json_object(json_text(file), file)
    return found


@dataclass(frozen=True)
class _Reader:
    """A file of cores, and what is said of them beside."""

    weights: Path
    settings: Mapping[str, Any]

    def modules(
        self, tensors: Mapping[str, RawTensor]
    ) -> tuple[dict[str, list[np.ndarray]], dict[str, RawTensor]]:
        """The cores of each module by its path in the model, and all other tensors."""
        found: dict[str, dict[int, np.ndarray]] = {}
        extras: dict[str, RawTensor] = {}
        for key, tensor in tensors.items():
            match = KEY.fullmatch(key)
            if match is None:
                extras[PREFIX + _unwrapped(key)] = tensor
                continue
            module = found.setdefault(_unwrapped(match["module"]), {})
            module[int(match["index"])] = self._core(key, tensor)
        for name, parts in found.items():
            if sorted(parts) != list(range(len(parts))):
                raise CheckpointError(
                    f"{self.weights}: module {name} has the cores {listed(list(map(str, parts)))}; "
                    f"needed all from 0 to {max(parts)}"
                )
        if not found:
            raise CheckpointError(f"{self.weights} holds no ttlora_cores; nothing to convert")
        return {name: [parts[k] for k in sorted(parts)] for name, parts in found.items()}, extras

    def _core(self, key: str, tensor: RawTensor) -> np.ndarray:
        if not tensor.is_float or len(tensor.shape) != 3 or 0 in tensor.shape:
            raise CheckpointError(
                f"{self.weights}: {key} is {tensor.dtype} of shape {tensor.shape}; needed floats "
                "(r, d, r')"
            )
        core = np.array(tensor.array())  # a file that is changed later changes no adapter
        if not is_finite(core):
            raise CheckpointError(f"{self.weights}: {key} holds NaN or infinite entries")
        return core

    @property
    def order(self) -> Order:
        """How the cores make a matrix."""
        said = next((self.settings[key] for key in VARIANT if key in self.settings), ORDERS[0])
        for order in ORDERS:
            if said == order:
                return order
        raise CheckpointError(
            f"the configuration of {self.weights} says the variant {said!r:.40}; needed one of "
            f"{', '.join(ORDERS)}"
        )

    def shape(self, name: str, parts: list[np.ndarray]) -> tuple[int, int]:
        """(out, in) of a module: as the configuration says, or square."""
        legs = [core.shape[1] for core in parts]
        whole = math.prod(legs)
        said = self.settings.get("weight_shape")
        if isinstance(said, Mapping):
            said = said.get(name.rpartition(".")[2])
        if isinstance(said, list) and len(said) == 2 and all(isinstance(x, int) for x in said):
            return said[0], said[1]
        side = math.isqrt(whole)
        if side * side == whole and side in itertools.accumulate(legs, operator.mul):
            return side, side
        raise CheckpointError(
            f"{self.weights}: the cores of {name} have legs {tuple(legs)}, which make no square "
            f'matrix; put "weight_shape": [out, in], or one for each kind of module, such as '
            f'{{"{name.rpartition(".")[2]}": [512, 2048]}}, into {CONFIG} beside it'
        )

    def alpha(self, cores: Mapping[str, list[np.ndarray]]) -> tuple[float, list[str]]:
        """What multiplies the updates; a note where the file does not say it."""
        said = next((self.settings[key] for key in ALPHA if key in self.settings), None)
        if said is not None:
            try:
                number = float(said)
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if not 0 < abs(number) <= LARGEST["float32"]:
                raise CheckpointError(
                    f"the configuration of {self.weights} says alpha {said!r:.40}; needed a number "
                    "other than 0"
                )
            return number, []
        recipes = {
            (tuple(c.shape[1] for c in parts), parts[0].shape[2]) for parts in cores.values()
        }
        known = {PUBLISHED.get(recipe) for recipe in recipes}
        if len(known) == 1 and None not in known:
            (number,) = known
            assert number is not None
            return number, [f"alpha = {number:g}, of the published adapters of these legs and rank"]
        raise CheckpointError(
            f"{self.weights} has no configuration that says alpha, which multiplies its updates; "
            f'put {{"alpha": 8, "variant": "reconstruction"}}, with the values that it was trained '
            f"with, into {CONFIG} beside it"
        )

    def stack(
        self, name: str, cores: list[list[np.ndarray]], shape: tuple[int, int], alpha: float
    ) -> TensorTrain:
        """The trains of modules of one kind, α inside, in the dtype of their cores."""
        dtype = common_dtype({core.dtype.name for parts in cores for core in parts})
        try:
            wide = [[narrow(core, "float64", xp=xp) for core in parts] for parts in cores]
            return astype(scale(tt_lora(wide, shape, self.order), alpha), dtype)
        except LotrError as error:
            raise CheckpointError(f"{self.weights}: {name}: {error}") from None


def _unwrapped(path: str) -> str:
    """A path in the model, without what wrappers put before it."""
    return WRAPPED.sub("", path, count=1)


def _as_lora(
    settings: Mapping[str, Any], groups: Mapping[str, LoTRGroup], extras: Mapping[str, RawTensor]
) -> dict[str, Any]:
    """What the configuration of a LoRA of these updates would say."""
    targets = [target for group in groups.values() for target in group.targets]
    rank = max(target.rank for target in targets)
    heads = sorted({key.removeprefix(PREFIX).partition(".")[0] for key in extras})
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": settings.get("base_model_name_or_path"),
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(target.name for target in targets),
        "modules_to_save": heads or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
