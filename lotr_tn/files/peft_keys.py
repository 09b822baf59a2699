"""The names of tensors in PEFT files."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lotr_tn.adapters.adapter import Layout
from lotr_tn.errors import CheckpointError, UnsupportedError

PREFIX = "base_model.model."

_FACTOR = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<plain>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"
    r"|lora_embedding_(?P<embedding>[AB])(?:\.(?P<embedding_adapter>[^.]+))?)"
)
_OTHER_METHODS = re.compile(
    r"\.(hada_[wt]|lokr_[wt]|oft_|boft_|vera_lambda|ia3_l|vblora_|fourierft_|unilora_|randlora_)"
)
_FOREIGN = (  # a pattern of keys, and the format that writes them
    (re.compile(r"^lora_(unet|te\d?|transformer)_"), "a kohya-ss or LyCORIS file"),
    (
        re.compile(r"\.lora\.(down|up)\.weight$|^(unet|transformer|text_encoder\d?)\."),
        "a diffusers file",
    ),
    (re.compile(r"^(unet|text_encoder):\d+:(up|down)$"), "a cloneofsimo/lora file"),
    (re.compile(r"\.lora_[ab]$"), "an MLX adapter"),
    (re.compile(r"^w_[ab]_\d+$"), "a SAM_LoRA file"),
    (re.compile(r"\.lora_[AB]$"), "a loralib file"),
)


@dataclass(frozen=True)
class FactorKey:
    """One factor's key, taken apart."""

    module: str
    side: str  # A or B
    embedding: bool
    adapter: str | None  # the adapter's name, where the key still has it


def parse_key(key: str, path: Path) -> FactorKey | None:
    """The factor that a key names; None for a tensor that is no low-rank factor."""
    if not key.startswith(PREFIX):
        raise CheckpointError(
            f"{path}: unknown key {key!r}; PEFT's keys begin with {PREFIX}{_guess_format(key)}"
        )
    name = key.removeprefix(PREFIX)
    match = _FACTOR.fullmatch(name)
    if match is not None:
        return FactorKey(
            match["module"],
            match["plain"] or match["embedding"],
            match["embedding"] is not None,
            match["adapter"] or match["embedding_adapter"],
        )
    if "lora_magnitude_vector" in name:
        raise UnsupportedError(
            f"{path}: {key} makes this a DoRA adapter, whose magnitudes a compressed update would "
            "not fit; merge it into the base model, or train without use_dora"
        )
    if re.search(r"\.lora_B(\.[^.]+)?\.bias$", name):
        raise UnsupportedError(f"{path}: {key} is a bias on lora_B; train without lora_bias")
    if re.search(r"(^|\.)lora_", name):
        raise CheckpointError(
            f"{path}: unknown key {key!r}; needed lora_A.weight, lora_B.weight, lora_embedding_A "
            "or lora_embedding_B"
        )
    if found := _OTHER_METHODS.search(name):
        raise UnsupportedError(
            f"{path}: {key} belongs to another method ({found[1].rstrip('_')}), not to LoRA"
        )
    return None


def _guess_format(key: str) -> str:
    for pattern, name in _FOREIGN:
        if pattern.search(key):
            return f", and this looks like {name}: convert it to PEFT's format first"
    return ""


def pair_keys(keys: Iterable[str], path: Path) -> dict[str, dict[str, str]]:
    """The keys of A and B of each module, in file order, of one adapter and in whole pairs."""
    pairs: dict[str, dict[str, str]] = {}
    adapters = set()
    for key in keys:
        factor = parse_key(key, path)
        if factor is None:
            continue
        adapters.add(factor.adapter)
        pair = pairs.setdefault(factor.module, {})
        side = ("embedding_" if factor.embedding else "") + factor.side
        if side in pair:
            raise CheckpointError(f"{path}: {key} and {pair[side]} are the same factor twice")
        pair[side] = key
    if len(adapters) > 1:
        names = ", ".join(sorted(str(name) for name in adapters))
        raise CheckpointError(f"{path} mixes adapters ({names}); save one adapter a file")
    for module, pair in pairs.items():
        if set(pair) not in ({"A", "B"}, {"embedding_A", "embedding_B"}):
            raise CheckpointError(
                f"{path}: module {module} has only {', '.join(sorted(pair.values()))}; needed both "
                "lora_A and lora_B"
            )
    return pairs


def factor_key(module: str, side: str, layout: Layout) -> str:
    """The key under which PEFT looks for a factor."""
    if layout.kind == "embedding":
        return f"{PREFIX}{module}.lora_embedding_{side}"
    return f"{PREFIX}{module}.lora_{side}.weight"
