"""What lies at a path, looked at as far as a dialect asks."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lotr_tn.errors import CheckpointError
from lotr_tn.files.dialects.peft import CONFIG, WEIGHTS
from lotr_tn.files.tensors import read_metadata


@dataclass(frozen=True)
class Contents:
    """A file of weights or a folder with one, and the configuration beside it."""

    path: Path  # what the user named

    @cached_property
    def weights(self) -> Path | None:
        """The file of weights: the path itself, or what PEFT calls it in a folder."""
        if self.path.is_file():
            return self.path
        return next((self.path / name for name in WEIGHTS if (self.path / name).is_file()), None)

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of a single safetensors file; none of anything else."""
        if not self.path.is_file() or self.path.suffix != ".safetensors":
            return {}
        return read_metadata(self.path)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The configuration beside PEFT's weights; nothing where it cannot be read."""
        if self.path.is_file() and self.path.name not in WEIGHTS:
            return {}
        try:
            return read_config(self.path)
        except CheckpointError:  # the reader of the dialect says what is wrong with it
            return {}


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in a folder, or beside a file of weights."""
    file = (path if path.is_dir() else path.parent) / CONFIG
    try:
        found = json.loads(file.read_bytes().decode("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file} ({error}); copy it again") from None
    return found if isinstance(found, dict) else {}
