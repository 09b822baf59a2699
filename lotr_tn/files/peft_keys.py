"""The names of tensors in PEFT files."""

import re
from collections.abc import Collection, Iterable, Mapping
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
        re.compile(r"_lora\.(down|up)\.weight$"),
        "a diffusers file of 2023, with LoRA in attention processors",
    ),
    (re.compile(r"\.lora\.(down|up)\.weight$|^(unet|text_encoder\d?)\."), "a diffusers file"),
    (re.compile(r"^(unet|text_encoder):\d+:(up|down)$"), "a cloneofsimo/lora file"),
    (re.compile(r"\.lora_[ab]$"), "an MLX adapter"),
    (re.compile(r"^w_[ab]_\d+$"), "a SAM_LoRA file"),
    (re.compile(r"\.lora_[AB]$"), "a loralib file"),
)
_DIFFUSERS = re.compile(r"^transformer\.")  # where no configuration says that PEFT wrote it

WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "module": "DDP or DeepSpeed",
}
"""Names that wrappers of modules put into paths, and who puts them there."""


@dataclass(frozen=True)
class FactorKey:
    """One factor's key, taken apart."""

    module: str
    side: str  # A or B
    embedding: bool
    adapter: str | None  # the adapter's name, where the key still has it


@dataclass(frozen=True)
class Keys:
    """The keys of a file under PEFT's names."""

    pairs: dict[str, dict[str, str]]  # of each module the file's keys by side
    extras: dict[str, str]  # the file's key of every other tensor
    notes: tuple[str, ...]  # what was taken off or added, a sentence each


def read_keys(
    keys: Iterable[str], path: Path, *, configured: bool = True, own: Iterable[str] = ()
) -> Keys:
    """The keys of one adapter in whole pairs, in file order.

    Names of wrappers are taken off wherever they stand, but for those in `own`, which the
    configuration has in its targets. Where no key has PEFT's prefix, all are taken to lack it.
    Without a configuration beside the file, names that diffusers writes too are taken for its.

    Raises:
        CheckpointError: keys of another format or method, of several adapters, or half a pair.
    """
    wrappers = {name for name in WRAPPERS if name not in set(own)}
    plain = {key: _unwrapped(key, wrappers) for key in keys}
    found = [w for w in WRAPPERS if any(w in key.split(".") for key in keys) and w in wrappers]
    notes = [f"{name}. taken off, which {WRAPPERS[name]} puts into names" for name in found]
    if plain and not any(name.startswith(PREFIX) for name in plain.values()):
        _require_bare(plain.values(), path, configured)
        plain = {key: PREFIX + name for key, name in plain.items()}
        notes.append(f"{PREFIX} put before names, which lack it")
    pairs, others = _paired(plain, path)
    extras: dict[str, str] = {}
    for key in others:
        if plain[key] in extras:
            raise CheckpointError(f"{path}: {key} and {extras[plain[key]]} are one tensor twice")
        extras[plain[key]] = key
    return Keys(pairs, extras, tuple(notes))


def _unwrapped(key: str, wrappers: Collection[str]) -> str:
    return ".".join(part for part in key.split(".") if part not in wrappers)


def _require_bare(names: Collection[str], path: Path, configured: bool) -> None:
    """Refuse names without PEFT's prefix that are not those of a LoRA's modules."""
    for name in names:
        what = next((what for pattern, what in _FOREIGN if pattern.search(name)), None)
        if what is None and not configured and _DIFFUSERS.search(name):
            what = "a diffusers file"
        if what is not None:
            raise CheckpointError(
                f"{path}: unknown key {name!r}; PEFT's keys begin with {PREFIX}, and this looks "
                f"like {what}: convert it to PEFT's format first"
            )
    if not any(_FACTOR.fullmatch(name) for name in names):
        raise CheckpointError(
            f"{path} holds no lora_A and lora_B tensors, but such as {next(iter(names))}: these "
            "are weights of a model, not an adapter; name the folder of a LoRA"
        )


def _parsed(key: str, path: Path) -> FactorKey | None:
    """The factor that a key names; None for a tensor that is no low-rank factor."""
    if not key.startswith(PREFIX):
        raise CheckpointError(f"{path}: unknown key {key!r}; PEFT's keys begin with {PREFIX}")
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


def _paired(keys: Mapping[str, str], path: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The file's keys of A and B of each module by PEFT's names, and those of other tensors."""
    pairs: dict[str, dict[str, str]] = {}
    others, adapters = [], set()
    for key, name in keys.items():
        factor = _parsed(name, path)
        if factor is None:
            others.append(key)
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
    return pairs, others


def factor_key(module: str, side: str, layout: Layout) -> str:
    """The key under which PEFT looks for a factor."""
    if layout.kind == "embedding":
        return f"{PREFIX}{module}.lora_embedding_{side}"
    return f"{PREFIX}{module}.lora_{side}.weight"
