"""Tensors of a torch file, opened by torch's weights-only loader, which runs no code."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lotr_tn._arrays import STORAGE_DTYPES, to_numpy
from lotr_tn.adapters.raw_tensor import CODES, RawTensor
from lotr_tn.errors import CheckpointError, UnsupportedError
from lotr_tn.files.recognised import LOOKED_AT, what_it_is
from lotr_tn.files.tensors import reason, require_unchanged, status

TIED = 4
"""How often the tensors of a file may hold its bytes: tied ones are views of one storage."""


def read_pickle(path: Path) -> dict[str, RawTensor]:
    """All tensors of a torch file, by torch's weights-only loader.

    What would be made out of the file is bounded by its size before it is made.
    """
    before = status(path)
    _look_at(path, before.st_size)
    loaded = _loaded(path)
    require_unchanged(path, before, status(path))
    if isinstance(loaded, list):
        raise UnsupportedError(
            f"{path} holds a list of tensors, as cloneofsimo/lora writes .pt files: they are known "
            "by their positions in the model alone, so convert it to PEFT's format first"
        )
    import torch

    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in loaded.items()
    ):
        raise CheckpointError(
            f"{path} holds a {type(loaded).__name__}, not a dictionary of named tensors as PEFT "
            "writes it"
        )
    _require_plain(path, loaded, before.st_size)
    return {key: _raw(path, key, value) for key, value in loaded.items()}


def _look_at(path: Path, size: int) -> None:
    """Refuse what is something else, and archives that unpack to more than their size."""
    try:
        with open(path, "rb") as file:
            if other := what_it_is(file.read(LOOKED_AT), torch=True):
                raise CheckpointError(f"{path} {other}")
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            whole = sum(entry.file_size for entry in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise _broken(path, reason(error)) from None
    if whole > size:
        raise CheckpointError(
            f"{path} of {size} bytes unpacks to {whole}: torch does not compress what it saves, so "
            "this is not what it wrote; save it again, as safetensors"
        )


def _broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a complete torch file ({why}); copy or download it again"
    )


def _loaded(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"{path} is a torch pickle, and torch is not installed; install 'lotr-tn[torch]', or "
            "save the adapter as safetensors"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about odd pickles: refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds more than tensors, or is damaged; it was not loaded, since a pickle can "
            "run code: ask for a safetensors file"
        ) from None
    except Exception as error:  # a foreign parser may raise anything on foreign bytes
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise _broken(path, why) from None


def _require_plain(path: Path, tensors: Mapping[str, Any], size: int) -> None:
    """Refuse tensors that are not entries in memory, or are many more than the file holds."""
    import torch

    whole = 0
    for key, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_quantized or type(tensor).__name__ not in ("Tensor", "Parameter"):
            kind = "quantised" if tensor.is_quantized else tensor.device.type
            kind = str(tensor.layout).removeprefix("torch.") if kind == "cpu" else kind
            raise CheckpointError(
                f"{path}: tensor {key} is {kind}, not a plain tensor; save it with .to_dense() or "
                ".contiguous(), on the CPU"
            )
        nbytes = tensor.numel() * tensor.element_size()
        whole += nbytes
        if nbytes > size or whole > TIED * size:
            raise CheckpointError(
                f"{path} of {size} bytes says that its tensors take {whole} or more (at {key}): "
                "they repeat what they hold; save each with .contiguous()"
            )


def _raw(path: Path, key: str, tensor: Any) -> RawTensor:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in CODES:
        raise CheckpointError(f"{path}: tensor {key} has the unsupported dtype {name}")
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if name in STORAGE_DTYPES:
        return RawTensor.of(to_numpy(tensor))
    import torch

    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return RawTensor(CODES[name], tuple(tensor.shape), data)
