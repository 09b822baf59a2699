"""Which modules are stacked together, by their paths and shapes."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from lotr_tn.catalogue.expressions import regular_expression

Shape = tuple[int, int]

EACH = r"^(.*)$"
"""Each module as a group of its own, by its path."""


def kind_of(name: str) -> str:
    """A module's path with its block indices removed.

    Examples:
        >>> kind_of("model.layers.11.self_attn.q_proj")
        'model.layers.self_attn.q_proj'
    """
    return ".".join(part for part in name.split(".") if not part.isdigit())


def group_paths(modules: Sequence[tuple[str, Shape]], by: str) -> dict[str, list[int]]:
    """The positions of the modules of each group, by the group's short name.

    Args:
        modules: path and shape of each.
        by: `kind`, `shape` or a regular expression, as `group_modules` tells.

    Raises:
        OptionError: the regular expression is not valid.

    Examples:
        >>> paths = ["h.0.attn.q", "h.0.attn.v", "h.1.attn.q", "h.1.attn.v"]
        >>> group_paths([(path, (8, 6)) for path in paths], "kind")
        {'q': [0, 2], 'v': [1, 3]}
    """
    label = _labeller(by)
    members: dict[tuple[str, Shape], list[int]] = {}
    for position, (path, shape) in enumerate(modules):
        members.setdefault((label(path, shape), shape), []).append(position)
    names = _short_names(members)
    return {names[key]: found for key, found in members.items()}


def _labeller(by: str) -> Callable[[str, Shape], str]:
    if by == "kind":
        return lambda path, shape: kind_of(path)
    if by == "shape":
        return lambda path, shape: "{}x{}".format(*shape)
    if by == EACH:
        return lambda path, shape: path
    expression = regular_expression(by, "group_by takes kind, shape or a regular expression")

    def label(path: str, shape: Shape) -> str:
        match = expression.search(path)
        if match is None:
            return kind_of(path)
        captured = [part for part in match[1:] if part is not None]
        return ".".join(captured) if captured else str(match[0])

    return label


def _short_names(keys: Collection[tuple[str, Shape]]) -> dict[tuple[str, Shape], str]:
    """The shortest tails of the labels that differ; the shape is added where labels are equal."""
    times = Counter(label for label, _ in keys)
    known = Counter(tail for label in times for tail in _tails(label))
    names = {}
    for label, shape in keys:
        tail = next((tail for tail in _tails(label) if known[tail] == 1), label)
        names[label, shape] = tail if times[label] == 1 else f"{tail}[{shape[0]}x{shape[1]}]"
    return names


def _tails(label: str) -> list[str]:
    """Its last word, its last two words, and so on."""
    parts = label.split(".")
    return [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
