"""One door for every file that we read, and one for every file that we write."""

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from lotr_tn._arguments import door
from lotr_tn._arrays import to_numpy
from lotr_tn.adapters.adapter import Adapter, Compressed, Layout, LoTRAdapter, LoTRGroup, Target
from lotr_tn.adapters.grouping import group_modules
from lotr_tn.analysis.forms import form_of
from lotr_tn.banks.file import is_bank, load_bank
from lotr_tn.errors import CheckpointError, listed
from lotr_tn.files.dialects.contents import Contents
from lotr_tn.files.dialects.native import save_native
from lotr_tn.files.dialects.peft import save_peft
from lotr_tn.files.dialects.table import dialect_of
from lotr_tn.files.places import located
from lotr_tn.formats import LoRAStack, Stack
from lotr_tn.ops.arrays import arrays_of, with_arrays


@door
def load_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Read an adapter: a PEFT folder or file of LoRA or of LoTR, or a native LoTR file.

    The scale (alpha/r, or alpha/√r for rsLoRA, with PEFT's patterns) belongs to each module and is
    multiplied in wherever factors are used. Tensors that are no low-rank updates, and the
    configuration, are kept as they are.

    Args:
        path: a folder with adapter_config.json and adapter_model.safetensors (or .bin, which needs
            torch and runs no code) or their parts with an index, one such weights file, or a
            `.lotr.safetensors` file; of a bank the file, a slash, and an adapter's name. A
            repository's folder in the Hub's cache stands for its snapshot, as does `org/name`.

    Returns:
        A LoRAAdapter or a LoTRAdapter, whose arrays stay mapped from the file until used.

    Raises:
        CheckpointError: the files are missing, damaged, or do not fit together, or the path is a
            bank, which holds many adapters.
        UnsupportedError: the adapter uses a feature that a conversion would not keep.

    Cost: the file is read once, to see that every factor is finite.
    """
    path = Path(path)
    if (place := place_in_bank(path)) is not None:
        return load_bank(place[0]).load(place[1])
    path = located(path)
    dialect = dialect_of(Contents(path))
    if is_bank(path):
        names = load_bank(path).names
        name = names[0] if names else "NAME"
        raise CheckpointError(
            f"{path} is a bank of {len(names)} adapters: take one out with lotr bank export "
            f"{shlex.quote(str(path))} {shlex.quote(name)}, or in Python with "
            f"load_bank({str(path)!r})[{name!r}]"
        )
    return dialect.read(path)


def place_in_bank(path: Path) -> tuple[Path, str] | None:
    """The bank and the adapter that a path names as BANK/NAME; None where it is no such path."""
    if os.path.exists(path):
        return None
    for bank in path.parents:
        if is_bank(bank):
            return bank, path.relative_to(bank).as_posix()
    return None


@door
def save_adapter(adapter: Adapter, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write a LoTR adapter as one native file, or a LoRA adapter as a PEFT folder.

    Args:
        adapter: what to write; a LoRA adapter keeps its factors and configuration as they are.
        path: the file (LoTR) or folder (LoRA) to make.
        force: whether an existing target may be replaced.

    Raises:
        CheckpointError: the target exists, or writing failed; then nothing was changed.
    """
    path = Path(path)
    if isinstance(adapter, LoTRAdapter):
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path} must end in .safetensors, such as name.lotr.safetensors")
        save_native(adapter, path, force=force)
        return
    save_peft(adapter, path, force=force)


@door
def save_stack(stack: Stack, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write one stack alone as a native file, with its certificate.

    Args:
        stack: a stack that a file can hold: all but `Dense`, and registered formats with a form.
        path: the file to make, such as `name.lotr.safetensors`.
        force: whether an existing file may be replaced.

    Raises:
        OptionError: a file has no form for such a stack.
        CheckpointError: the target exists, or writing failed; then nothing was changed.

    Cost: a copy on NumPy of a stack of another library.
    """
    form_of(stack)
    held = cast("Compressed", stack)
    moved = with_arrays(held, **{name: to_numpy(x) for name, x in arrays_of(held).items()})
    if (certificate := held.certificate) is not None:
        numbers = {f: to_numpy(getattr(certificate, f)) for f in ("distances", "norms")}
        bounds = {f: np.float64(float(getattr(certificate, f))) for f in ("lower", "upper")}
        moved = replace(moved, certificate=replace(certificate, **numbers, **bounds))
    layers, m, n = held.shape
    ranks = held.ranks if isinstance(held, LoRAStack) else (min(m, n),) * layers
    targets = tuple(Target(f"layers.{i}", Layout(), rank) for i, rank in enumerate(ranks))
    origin = {"format": "stack", "dtype": moved.dtype}
    group = LoTRGroup("stack", targets, moved)
    save_adapter(LoTRAdapter({"stack": group}, {}, "{}", origin), path, force=force)


@door
def load_stack(path: str | os.PathLike[str]) -> Compressed:
    """The one stack of a file, on NumPy, with its certificate.

    Raises:
        CheckpointError: the file is damaged, or holds several stacks.
    """
    groups = group_modules(load_adapter(path))
    if len(groups) != 1:
        raise CheckpointError(
            f"{path} holds {len(groups)} stacks, {listed(list(groups))}; take one with "
            "lt.group_modules(lt.load_adapter(path))[name].stack"
        )
    (group,) = groups.values()
    return group.stack
