"""What a merged adapter has beside its updates: other tensors, and a configuration."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from lotr_tn.adapters.adapter import Adapter
from lotr_tn.adapters.config_fields import OTHER_TENSORS, require_same_meaning
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.errors import CheckpointError, OptionError, listed, meant


def carried(
    adapters: Mapping[str, Adapter],
    used: Mapping[str, Adapter],
    extras_from: str | None,
    *,
    any_base: bool,
) -> tuple[Mapping[str, RawTensor], dict[str, Any]]:
    """The other tensors that the merged adapter keeps, and the configuration it starts from.

    Raises:
        OptionError: `extras_from` is no adapter's name.
        CheckpointError: other tensors differ, or what updates mean beside their factors.
    """
    first = next(iter(used))
    named = extras_from not in (None, "none")
    if named and extras_from not in adapters:
        raise OptionError(
            f"there is no adapter {extras_from!r} to keep other tensors of; there are "
            f"{listed(list(adapters))}, or none{meant(extras_from, adapters)}"
        )
    configs = {name: _config(adapter) for name, adapter in used.items()}
    if extras_from is not None and named:
        configs = {extras_from: _config(adapters[extras_from])} | configs
    require_same_meaning(configs, any_base=any_base, any_tensors=extras_from is not None)
    if extras_from is None:
        _require_same_extras(used)
        return used[first].extras, configs[first]
    if named:
        return adapters[extras_from].extras, configs[extras_from]
    return {}, configs[first] | OTHER_TENSORS


def _require_same_extras(adapters: Mapping[str, Adapter]) -> None:
    first, *others = adapters
    ours = adapters[first].extras
    for name in others:
        theirs = adapters[name].extras
        differing = [k for k in {**ours, **theirs} if not _same(ours.get(k), theirs.get(k))]
        if differing:
            more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
            raise CheckpointError(
                f"{first} and {name} differ in {differing[0]}{more}, which is no low-rank update "
                f"and is not merged; say whose to keep with extras_from={name!r}, or none"
            )


def _same(a: RawTensor | None, b: RawTensor | None) -> bool:
    if a is None or b is None:
        return False
    return (a.code, a.shape) == (b.code, b.shape) and np.array_equal(a.data, b.data)


def _config(adapter: Adapter) -> dict[str, Any]:
    return json.loads(adapter.config_text)
