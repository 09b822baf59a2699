"""What lies at a path, looked at as far as a dialect asks."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lotr_tn.errors import CheckpointError
from lotr_tn.files.json_text import json_object, json_text
from lotr_tn.files.tensors import read_metadata
from lotr_tn.files.weights import CONFIG, WEIGHTS, weights_in


@dataclass(frozen=True)
class Contents:
    """A file of weights or a folder with one, and the configuration beside it."""

    path: Path  # what the user named

    @cached_property
    def weights(self) -> Path | None:
        """The file of weights, or the index of its parts; the path itself where that is a file."""
        if self.path.is_file():
            return self.path
        return weights_in(self.path)

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
        return json_object(json_text(file), file)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
