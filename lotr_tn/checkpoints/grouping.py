"""Which modules are stacked together."""

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from lotr_tn.checkpoints.adapter import LoRAAdapter, LoRAGroup, LoRAModule, LoTRAdapter, LoTRGroup
from lotr_tn.errors import OptionError

__all__ = ["group_modules", "kind_of"]


def kind_of(name: str) -> str:
    """A module's path with its block indices removed.

    Examples:
        >>> kind_of("model.layers.11.self_attn.q_proj")
        'model.layers.self_attn.q_proj'
    """
    return ".".join(part for part in name.split(".") if not part.isdigit())


def group_modules(
    adapter: LoRAAdapter | LoTRAdapter, by: str = "kind"
) -> Mapping[str, LoRAGroup] | Mapping[str, LoTRGroup]:
    """The stacks of an adapter, by name, in the order of the file.

    Args:
        adapter: any adapter. A LoTR adapter has its groups already, and `by` has no effect.
        by: `kind`: same path apart from block indices, and same shape. `shape`: same (m, n), as in
            the LoTR paper, where queries and values share one pair of factors. Anything else is a
            regular expression, searched in each path: modules with equal captured groups (or equal
            matches, where it captures nothing) and equal shape go together, and modules without a
            match are grouped by kind.

    Returns:
        Groups by name. A name is the shortest end of the path that tells the groups apart, such as
        `q_proj` or `attn.c_proj`; or a shape, such as `768x768`.

    Raises:
        OptionError: the regular expression is not valid.

    Cost: none; a group's stack is built when it is asked for.

    Source: Bershatsky et al. (2024) for `shape`.
    """
    if isinstance(adapter, LoTRAdapter):
        return adapter.groups
    label = _labeller(by)
    members: dict[tuple[str, tuple[int, int]], list[LoRAModule]] = {}
    for module in adapter.modules:
        members.setdefault((label(module), module.shape), []).append(module)
    names = _short_names(members)
    return MappingProxyType(
        {names[key]: LoRAGroup(names[key], tuple(found)) for key, found in members.items()}
    )


def _labeller(by: str) -> Callable[[LoRAModule], str]:
    if by == "kind":
        return lambda module: kind_of(module.target.name)
    if by == "shape":
        return lambda module: "{}x{}".format(*module.shape)
    try:
        pattern = re.compile(by)
    except re.error as error:
        raise OptionError(
            f"--group-by takes kind, shape or a regular expression; {by!r} is none ({error})"
        ) from None

    def label(module: LoRAModule) -> str:
        match = pattern.search(module.target.name)
        if match is None:
            return kind_of(module.target.name)
        captured = [part for part in match.groups() if part is not None]
        return ".".join(captured) if captured else match.group(0)

    return label


def _short_names(
    keys: Iterable[tuple[str, tuple[int, int]]],
) -> dict[tuple[str, tuple[int, int]], str]:
    """The shortest tails of the labels that differ; the shape is added where labels are equal."""
    keys = list(keys)
    labels = {label for label, _ in keys}
    names = {}
    for label, shape in keys:
        parts = label.split(".")
        for count in range(1, len(parts) + 1):
            tail = ".".join(parts[-count:])
            if sum(other == tail or other.endswith("." + tail) for other in labels) == 1:
                break
        else:
            tail = label
        if sum(other == label for other, _ in keys) > 1:
            tail += f"[{shape[0]}x{shape[1]}]"
        names[label, shape] = tail
    return names
