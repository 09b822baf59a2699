"""JSON that others wrote: read with or without a byte-order mark, refused in one sentence."""

import json
from pathlib import Path
from typing import Any

from lotr_tn.errors import CheckpointError
from lotr_tn.files.recognised import what_it_is


def json_text(path: Path) -> str:
    """The text of a JSON file, line ends as they are, without a byte-order mark.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is no file, no text, or something else by its first bytes.
    """
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is no file that can be read; put the file there")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read {path} ({error.strerror})") from None
    if other := what_it_is(raw):
        raise CheckpointError(f"{path} {other}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"cannot read {path}: it is no text in UTF-8 ({error.reason} at byte {error.start}); "
            "copy it again, or save it as UTF-8"
        ) from None


def json_object(text: str, path: Path) -> dict[str, Any]:
    """The object that a JSON text holds.

    Raises:
        CheckpointError: it is no JSON, or holds something else.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise CheckpointError(
            f"{path} nests its values too deep to be read; copy it again"
        ) from None
    except ValueError as error:  # no JSON, or a number of thousands of digits
        raise CheckpointError(f"{path} is not valid JSON ({error}); copy it again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not a JSON object")
    return found
