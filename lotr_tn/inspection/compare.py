"""Two adapters side by side: how far apart, module by module."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lotr_tn._arguments import door
from lotr_tn.adapters.adapter import Adapter, LoRAAdapter, LoRAGroup, LoTRAdapter
from lotr_tn.adapters.paths import require_common, shapes_of
from lotr_tn.errors import CheckpointError
from lotr_tn.formats import Stack
from lotr_tn.formats.certificate import ratio
from lotr_tn.ops import astype, cosine, layer_distances, layer_norms, take_layers


@dataclass(frozen=True)
class ModuleComparison:
    """One module in two adapters.

    Attributes:
        name: its path.
        relative_error: ‖a − b‖ / ‖a‖.
        cosine: ⟨a, b⟩ / (‖a‖·‖b‖).
    """

    name: str
    relative_error: float
    cosine: float


@dataclass(frozen=True)
class Comparison:
    """Two adapters.

    Attributes:
        relative_error: ‖A − B‖ / ‖A‖ over all modules together.
        cosine: ⟨A, B⟩ / (‖A‖·‖B‖).
        modules: the same of each module, in the order of A.
    """

    relative_error: float
    cosine: float
    modules: tuple[ModuleComparison, ...]


@door
def compare_adapters(a: Adapter, b: Adapter) -> Comparison:
    """Measure how far two adapters of one base lie apart.

    Args:
        a: the reference.
        b: an adapter of the same modules.

    Raises:
        CheckpointError: they update different modules, or modules of different shapes.

    Cost: O((m + n)·r_a·r_b) flops a module; memory of one group's factors.
    """
    _require_same_modules(a, b)
    names, rows = [], []
    for chunk in _chunks(a, b):
        x, y = _stack(a, chunk), _stack(b, chunk)
        if x.shape != y.shape:
            raise CheckpointError(
                f"module {chunk[0]} is {x.shape[1:]} in one adapter and {y.shape[1:]} in the other"
            )
        names += chunk
        each = ((take_layers(x, [i]), take_layers(y, [i])) for i in range(len(chunk)))
        angles = [float(cosine(*pair)) for pair in each]
        rows.append(np.stack([layer_distances(x, y), layer_norms(x), layer_norms(y), angles]))
    distances, left, right, cosines = np.concatenate(rows, axis=1)
    # of an update that cancels to zero a distance is the size of the other, without its rounding
    distances = np.where((left == 0) | (right == 0), left + right, distances)
    modules = {
        name: ModuleComparison(name, ratio(float(distance), float(norm)), float(angle))
        for name, distance, norm, angle in zip(names, distances, left, cosines, strict=True)
    }
    size, other = math.hypot(*left), math.hypot(*right)
    shares = (left / size) * (right / other) if size and other else np.zeros(len(names))
    return Comparison(
        ratio(math.hypot(*distances), size),
        max(-1.0, min(1.0, float(cosines @ shares))),
        tuple(modules[name] for name in _names(a)),
    )


def _names(adapter: Adapter) -> list[str]:
    if isinstance(adapter, LoRAAdapter):
        return [module.target.name for module in adapter.modules]
    return [target.name for group in adapter.groups.values() for target in group.targets]


def _require_same_modules(a: Adapter, b: Adapter) -> None:
    known = {path: ("the first adapter", shape) for path, shape in shapes_of(a).items()}
    require_common(known, "the second", shapes_of(b), apart=True)
    only_a = sorted(set(_names(a)) - set(_names(b)))
    only_b = sorted(set(_names(b)) - set(_names(a)))
    for alone, where in ((only_a, "first"), (only_b, "second")):
        if alone:
            more = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
            raise CheckpointError(
                f"only the {where} adapter updates {alone[0]}{more}; needed two adapters of the "
                "same modules"
            )


def _chunks(a: Adapter, b: Adapter) -> list[list[str]]:
    """Modules that can be stacked in both adapters: they share a group where there are groups."""
    groups = [
        {t.name: (index, name) for name, g in x.groups.items() for t in g.targets}
        for index, x in enumerate((a, b))
        if isinstance(x, LoTRAdapter)
    ]
    chunks: dict[object, list[str]] = {}
    for name in _names(a):
        key = tuple(of[name] for of in groups) or name
        chunks.setdefault(key, []).append(name)
    return list(chunks.values())


def _stack(adapter: Adapter, names: Sequence[str]) -> Stack:
    """The named modules as one float64 stack."""
    if isinstance(adapter, LoRAAdapter):
        modules = {module.target.name: module for module in adapter.modules}
        return astype(LoRAGroup("", tuple(modules[name] for name in names)).stack, "float64")
    for group in adapter.groups.values():
        index = {target.name: i for i, target in enumerate(group.targets)}
        if names[0] in index:
            part = take_layers(group.stack, [index[name] for name in names])
            return astype(part, "float64")
    raise CheckpointError(f"no group updates {names[0]}")
