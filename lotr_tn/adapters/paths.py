"""Paths of modules in several adapters: which they have in common, and prefixes that differ."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from lotr_tn._arguments import door
from lotr_tn.adapters.adapter import Adapter, LoRAAdapter, LoRAGroup, LoRAModule
from lotr_tn.adapters.as_lora import config_text
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.errors import CheckpointError

A = TypeVar("A", bound=Adapter)
Shapes = Mapping[str, tuple[int, int]]
"""(m, n) of modules by their paths."""

BEFORE = "base_model.model."  # what stands before a path in the key of a tensor
MOST_SAID = 3  # prefixes up to which paths are said to differ in nothing else


def shapes_of(adapter: Adapter) -> dict[str, tuple[int, int]]:
    """The shapes of an adapter's modules by path."""
    if isinstance(adapter, LoRAAdapter):
        return {module.target.name: module.shape for module in adapter.modules}
    return {t.name: g.shape[1:] for g in adapter.groups.values() for t in g.targets}


def require_common(
    known: Mapping[str, tuple[str, tuple[int, int]]],
    name: str,
    found: Shapes,
    *,
    apart: bool = False,
) -> None:
    """Refuse an adapter, by its name, of which no module is one of those known so far.

    Nor may most of its modules have other paths than those known but for a prefix.

    Args:
        known: who has each module, with its shape.
        name: of the adapter.
        found: its modules.
        apart: whether there may be no common module, as long as it is not for a prefix.

    Raises:
        CheckpointError: it says which prefixes differ, where that is all that does.
    """
    common = sum(path in known for path in found)
    if 2 * common >= len(found) or not known:
        return
    prefixes = differing_prefixes({path: shape for path, (_, shape) in known.items()}, found)
    if prefixes and (not common or all(_nested(*pair) for pair in prefixes.items())):
        old, new = next(iter(prefixes.items()))
        mine = next(path for path in found if path not in known and _under(old, path))
        theirs = _moved(mine, old, new)
        pairs = json.dumps(prefixes, ensure_ascii=False)
        raise CheckpointError(
            f"only {name} has {mine} and only {known[theirs][0]} has {theirs}: paths differ in a "
            f"prefix; if they mean the same modules, give "
            f"lotr_tn.adapters.map_prefix(adapter, {pairs})"
        )
    if not common and not apart:
        path, (owner, _) = next(iter(known.items()))
        raise CheckpointError(
            f"{name} and {owner} have no module in common: {next(iter(found))} and {path}; needed "
            "adapters of the same modules of one base"
        )


def differing_prefixes(known: Shapes, found: Shapes) -> dict[str, str]:
    """Prefixes of the paths that are not known, with those under which they would be known.

    Empty where not all of these paths would be known, with their shapes.

    Examples:
        >>> differing_prefixes({"model.layers.0.q": (2, 3)}, {"model.text.layers.0.q": (2, 3)})
        {'model.text.layers': 'model.layers'}
    """
    left = [path for path in known if path not in found]
    missing = [path for path in found if path not in known]
    if not left or not missing:
        return {}
    by_end: dict[str, list[str]] = {}
    for path in left:
        by_end.setdefault(path.rpartition(".")[2], []).append(path)
    pairs: dict[str, str] = {}
    for path in missing:
        apart = next((a for a in pairs if _under(a, path)), None)
        if apart is None:
            ends = by_end.get(path.rpartition(".")[2], [])
            same = [other for other in ends if _numbers(other) == _numbers(path)]
            if not same or len(pairs) == MOST_SAID:
                return {}
            apart, other = _apart(path, max(same, key=lambda other: _alike(path, other)))
            pairs[apart] = other
        if known.get(_moved(path, apart, pairs[apart])) != found[path]:
            return {}
    return pairs


@door
def map_prefix(adapter: A, prefixes: Mapping[str, str]) -> A:
    """The adapter with other prefixes of its modules' paths, and of the keys of other tensors.

    Args:
        adapter: a LoRA or a LoTR.
        prefixes: new prefixes by old ones, in whole names between dots; of several that fit, the
            longest counts. An adapter with none of them is given back as it is.

    Raises:
        CheckpointError: two modules would have one path.

    Examples:
        >>> from pathlib import Path
        >>> import lotr_tn as lt
        >>> adapter = lt.load_adapter(Path(lt.__file__).parent / "demo" / "adapter")
        >>> moved = map_prefix(adapter, {"model.layers": "model.language_model.layers"})
        >>> adapter.modules[0].target.name, moved.modules[0].target.name
        ('model.layers.0.mlp.gate_proj', 'model.language_model.layers.0.mlp.gate_proj')
    """
    names = {path: _mapped(path, prefixes) for path in shapes_of(adapter)}
    extras = {_mapped_key(key, prefixes): tensor for key, tensor in adapter.extras.items()}
    if all(path == new for path, new in names.items()) and extras.keys() == adapter.extras.keys():
        return adapter
    if len({*names.values()}) < len(names) or len(extras) < len(adapter.extras):
        twice = next(new for new in names.values() if [*names.values()].count(new) > 1)
        raise CheckpointError(f"the mapped prefixes give {twice} to two modules; map one of them")
    if isinstance(adapter, LoRAAdapter):
        return _mapped_lora(adapter, names, extras, prefixes)
    groups = {}
    for name, group in adapter.groups.items():
        if isinstance(group, LoRAGroup):
            groups[name] = replace(group, modules=_renamed(group.modules, names))
        else:
            targets = tuple(replace(t, name=names[t.name]) for t in group.targets)
            groups[name] = replace(group, targets=targets)
    config = _mapped_config(json.loads(adapter.config_text), names, prefixes)
    return replace(adapter, groups=groups, extras=extras, config_text=config_text(config))


def _mapped_lora(
    adapter: LoRAAdapter,
    names: Mapping[str, str],
    extras: Mapping[str, RawTensor],
    prefixes: Mapping[str, str],
) -> LoRAAdapter:
    """The same LoRA; a rank or a scale of its own is told by the whole path of its module."""
    config = _mapped_config(adapter.config, names, prefixes)
    modules = _renamed(adapter.modules, names)
    root = 0.5 if config.get("use_rslora") else 1.0
    patterns = {"rank_pattern": {}, "alpha_pattern": {}}
    for module in modules:
        name, rank = f"^{re.escape(module.target.name)}", module.target.rank
        alpha = module.scale * rank**root
        if rank != config.get("r"):
            patterns["rank_pattern"][name] = rank
        if alpha != config.get("lora_alpha"):
            patterns["alpha_pattern"][name] = round(alpha) if alpha == round(alpha) else alpha
    config |= patterns
    return replace(
        adapter, modules=modules, extras=extras, config=config, config_text=config_text(config)
    )


def _renamed(modules: tuple[LoRAModule, ...], names: Mapping[str, str]) -> tuple[LoRAModule, ...]:
    return tuple(replace(m, target=replace(m.target, name=names[m.target.name])) for m in modules)


def _mapped_config(
    config: Mapping[str, Any], names: Mapping[str, str], prefixes: Mapping[str, str]
) -> dict[str, Any]:
    """A configuration whose targets are all named, and whose other modules have the new paths."""
    found = {
        **config,
        "target_modules": sorted({name.split(".base_layer", 1)[0] for name in names.values()}),
        **dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern")),
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    if isinstance(saved := config.get("modules_to_save"), list):
        found["modules_to_save"] = [_mapped(str(path), prefixes) for path in saved]
    if isinstance(tokens := config.get("trainable_token_indices"), dict):
        found["trainable_token_indices"] = {_mapped(k, prefixes): v for k, v in tokens.items()}
    return found


def _mapped_key(key: str, prefixes: Mapping[str, str]) -> str:
    before = BEFORE if key.startswith(BEFORE) else ""
    return before + _mapped(key[len(before) :], prefixes)


def _mapped(path: str, prefixes: Mapping[str, str]) -> str:
    old = max((old for old in prefixes if _under(old, path)), key=len, default=None)
    return path if old is None else _moved(path, old, prefixes[old])


def _under(prefix: str, path: str) -> bool:
    return not prefix or path == prefix or path.startswith(prefix + ".")


def _moved(path: str, old: str, new: str) -> str:
    rest = path[len(old) :].lstrip(".")
    return ".".join(part for part in (new, rest) if part)


def _numbers(path: str) -> list[str]:
    return [part for part in path.split(".") if part.isdigit()]


def _alike(path: str, other: str) -> int:
    """How many names at the ends of two paths are the same."""
    ends = zip(reversed(path.split(".")), reversed(other.split(".")), strict=False)
    count = 0
    for one, two in ends:
        if one != two:
            break
        count += 1
    return count


def _apart(path: str, other: str) -> tuple[str, str]:
    """How two paths begin before their common end; the end's first name goes with it."""
    same = max(_alike(path, other) - 1, 0)
    one, two = path.split("."), other.split(".")
    return ".".join(one[: len(one) - same]), ".".join(two[: len(two) - same])


def _nested(one: str, other: str) -> bool:
    """Whether one prefix has all names of the other: a name was put in, not another one taken."""
    a, b = set(one.split(".")), set(other.split("."))
    return a <= b or b <= a
