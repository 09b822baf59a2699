"""What a method of training stores, for files and for modules that train: no torch here."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import array_api_compat

from lotr_tn._arrays import Array
from lotr_tn.catalogue.grouping import kind_of
from lotr_tn.formats import Stack, Tucker2

Tensors: TypeAlias = Mapping[str, Array]  # arrays by the names of their parameters


@dataclass(frozen=True)
class Site:
    """A layer's place in its group.

    Attributes:
        index: its position in the stack.
        coordinates: (block, kind): which of the group's block numbers its path has, and which of
            the names without them.
        siblings: how many layers of the group, itself included, are expected to be given one input.
        padding: the entry of an embedding whose row is not trained.
    """

    index: int = 0
    coordinates: tuple[int, ...] = (0, 0)
    siblings: int = 1
    padding: int | None = None


def sites_of(paths: Sequence[str]) -> tuple[Site, ...]:
    """The places of the layers at these paths, in stack order.

    Examples:
        >>> [site.coordinates for site in sites_of(["h.4.q", "h.4.v", "h.7.q", "h.7.v"])]
        [(0, 0), (0, 1), (1, 0), (1, 1)]
    """
    blocks = [tuple(part for part in path.split(".") if part.isdigit()) for path in paths]
    kinds = [kind_of(path) for path in paths]
    block = {name: i for i, name in enumerate(dict.fromkeys(blocks))}
    kind = {name: i for i, name in enumerate(dict.fromkeys(kinds))}
    pairs = zip(blocks, kinds, strict=True)
    return tuple(Site(i, (block[b], kind[k])) for i, (b, k) in enumerate(pairs))


@dataclass(frozen=True)
class Method:
    """A method of training, as its files have it.

    Attributes:
        name: begins the names of its tensors, and in capitals is PEFT's name of the method.
        label: its name in sentences.
        shared: the tensors that a group has once.
        own: the shapes of the tensors that each layer has, by name, given the shared ones; None
            for a shape that they do not tell.
        stack: shared tensors, own tensors of each layer, and the layers' places, as a stack of the
            library.
        apart: the same backwards: the shared tensors of a stack, and each layer's own.
        options: the options with which a form has a stack's sizes.
        size: the r by which alpha is divided, for such options.
        holder: the name of what holds the shared tensors.
    """

    name: str
    label: str
    shared: tuple[str, ...]
    own: Callable[[Tensors], Mapping[str, tuple[int, ...] | None]]
    stack: Callable[[Tensors, Sequence[Tensors], Sequence[Site]], Stack]
    apart: Callable[[Any], tuple[Tensors, Sequence[Tensors]]]
    options: Callable[[Any], dict[str, Any]]
    size: Callable[[Mapping[str, Any]], float]
    holder: str = "shared"

    @property
    def kind(self) -> str:
        """PEFT's name of the method."""
        return self.name.upper()

    def held(self, **where: bool) -> str:
        """The same as `kept` for what holds the shared tensors.

        Embeddings are told apart where a layer has nothing of its own that would tell it.
        """
        return self.kept(self.holder, **where)

    def kept(self, own: str, *, moved: bool = False, looks_up: bool = False) -> str:
        """What a layer calls one of its own tensors, and a file.

        Args:
            own: the tensor's name.
            moved: of what was taken out of the base weights when training began.
            looks_up: of an embedding, in a file.

        Examples:
            >>> LOTR.kept("core"), LOTR.kept("core", moved=True, looks_up=True)
            ('lotr_core', 'lotr_moved_embedding_core')
        """
        return f"{self.name}_{'moved_' * moved}{'embedding_' * looks_up}{own}"

    def scale(
        self, alpha: float | None, options: Mapping[str, Any], *, root: bool = False
    ) -> float:
        """α/r, or α/√r with `root`; 1 where alpha is None.

        Examples:
            >>> [LOTR.scale(16, {"ranks": (4, 16)}), LOTR.scale(None, {"ranks": (8, 8)})]
            [2.0, 1.0]
        """
        if alpha is None:
            return 1.0
        r = self.size(options)
        return float(alpha) / (math.sqrt(r) if root else r)


def _tucker2(shared: Tensors, owns: Sequence[Tensors], sites: Sequence[Site]) -> Tucker2:
    u, v = shared["u"], shared["v"]
    xp = array_api_compat.array_namespace(u, v)
    return Tucker2(u, xp.stack([own["core"] for own in owns]), v)


LOTR = Method(
    name="lotr",
    label="LoTR",
    shared=("u", "v"),
    own=lambda shared: {"core": (shared["u"].shape[1], shared["v"].shape[1])},
    stack=_tucker2,
    apart=lambda stack: (
        {"u": stack.u, "v": stack.v},
        [{"core": stack.core[index, ...]} for index in range(stack.shape[0])],
    ),
    options=lambda stack: {"ranks": stack.ranks},
    size=lambda options: math.sqrt(math.prod(options["ranks"])),
    holder="factors",
)

METHODS: dict[str, Method] = {LOTR.kind: LOTR}
"""Methods by PEFT's names of them; a module with a form of its own adds to it."""
