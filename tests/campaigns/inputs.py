"""Small sound inputs of every kind, from which campaigns make damaged ones."""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

import lotr_tn as lt
from lotr_tn.banks.file import is_bank
from lotr_tn.files.dialects.lotr_peft import save_lotr_peft
from tests.banks import fleets

KINDS = {"q": ((9, 7), fleets.Layout()), "v": ((5, 7), fleets.Layout())}
FILES = dict.fromkeys(("native", "mixed", "coded", "bank"), ".lotr.safetensors")
NAMES = ("plain", "half", "torch", "lotr-peft", *FILES)


@cache
def sound() -> Path:
    """A folder with one input of each of `NAMES`, made once."""
    root = Path(tempfile.mkdtemp(prefix="lotr-inputs-"))
    modules = fleets.paths(KINDS, 2)
    planted = fleets.spaces(0, modules, 3)
    extras = {fleets.HEAD: fleets.head(0)}
    plain = fleets.adapter(0, planted=planted, modules=modules, extras=extras)
    half = fleets.adapter(
        1, planted=planted, modules=modules, extras=extras, dtype="float16", rank=2
    )
    for name, one in {"plain": plain, "half": half}.items():
        lt.save_adapter(one, root / name)
    _as_torch(root / "half", root / "torch")
    rule = lt.RelativeError(0.2)
    lotr = lt.convert_adapter(plain, rule, format="lotr").adapter
    lt.save_adapter(lotr, _path(root, "native"))
    lt.save_adapter(lt.convert_adapter(half, rule).adapter, _path(root, "mixed"))
    coded = lt.convert_adapter(half, rule, format="auto", coding="auto").adapter
    lt.save_adapter(coded, _path(root, "coded"))
    save_lotr_peft(lotr, root / "lotr-peft")
    lt.banks.make_bank({"plain": plain, "half": half}, _path(root, "bank"), rule)
    return root


def _as_torch(folder: Path, target: Path) -> None:
    """The same adapter as PEFT wrote it before safetensors."""
    import torch
    from safetensors.torch import load_file

    target.mkdir()
    torch.save(load_file(folder / "adapter_model.safetensors"), target / "adapter_model.bin")
    shutil.copy(folder / "adapter_config.json", target)


def _path(folder: Path, name: str) -> Path:
    return folder / (name + FILES.get(name, ""))


def copied(name: str, folder: Path) -> Path:
    """A copy of one input."""
    source, target = _path(sound(), name), _path(folder, name)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    return target


def weights_of(path: Path) -> Path:
    """The file with the numbers."""
    if not path.is_dir():
        return path
    (found,) = path.glob("adapter_model.*")
    return found


def updates(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """The dense updates of every adapter of an input, by its name and by module."""
    if is_bank(path):
        bank = lt.banks.load_bank(path)
        return {name: fleets.dense(bank[name]) for name in bank.names}
    return {"": fleets.dense(lt.load_adapter(path))}


def header_of(raw: bytes) -> tuple[dict, bytes]:
    """The header and the data of a safetensors file."""
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def with_header(header: dict | bytes, data: bytes) -> bytes:
    """A safetensors file of a header and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data
