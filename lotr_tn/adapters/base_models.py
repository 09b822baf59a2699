"""The base model that adapters belong to, as their configurations name it."""

import json

from lotr_tn.adapters.adapter import Adapter, LoRAAdapter
from lotr_tn.errors import CheckpointError

KEY = "base_model_name_or_path"


def base_model_of(adapter: Adapter) -> str | None:
    """The base model that an adapter's configuration names."""
    if isinstance(adapter, LoRAAdapter):
        return adapter.config.get(KEY) or None
    return base_model_in(adapter.config_text)


def base_model_in(config_text: str) -> str | None:
    """The base model that the text of a configuration names."""
    return json.loads(config_text).get(KEY) or None


def require_same_base(first: tuple[str, str | None], second: tuple[str, str | None]) -> None:
    """Refuse two adapters, by name and base model, of two bases; one that names none fits any.

    A hub's name and a folder on disk are the same where their last parts are.
    """
    (one, known), (other, base) = first, second
    if known and base and _last(known) != _last(base):
        raise CheckpointError(
            f"{other} belongs to the base {base} and {one} to {known}; needed adapters of one base "
            "(any_base=True, if both names mean the same model)"
        )


def _last(base: str) -> str:
    return base.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1].lower()
