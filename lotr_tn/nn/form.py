"""What a trainable form supplies; grouping, holding, merging and files are common to all forms."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from lotr_tn.catalogue.methods import METHODS, Method, Site
from lotr_tn.decompose.initialise_weights import Matrices
from lotr_tn.errors import FormatError, OptionError, UnsupportedError
from lotr_tn.formats import LoRAStack, Stack
from lotr_tn.nn.grouping import Group

Own: TypeAlias = Mapping[str, Tensor]
"""What a layer has for itself, by the names of the parameters; nothing for some forms."""


@dataclass(frozen=True)
class Start:
    """How the parameters of a group begin.

    Attributes:
        init: one of the form's starts, or low-rank updates to continue with, one for each layer.
        weights: the pretrained weights (m, n) of the layers, on the host; read when asked for.
        like: a tensor with the dtype and the device that the parameters get.
        scale: what the update is multiplied by, so that the start itself is divided by it.
        seed: of all random numbers.
    """

    init: str | LoRAStack
    weights: Matrices
    like: Tensor
    scale: float = 1.0
    seed: int = 0


class Form(nn.Module, ABC):
    """The updates of a group of layers: one instance a group, which holds all that they share.

    Every layer of the group holds this one module, beside parameters of its own, so that what is
    shared is moved, cast, copied and saved once. What of it is not trained is a buffer.

    Attributes:
        method: the names of the tensors, and the stack that they are.
        starts: how training can begin; the first is the default. From "principal" the update is
            taken out of the base weights.
        part_names: what the shared parameters and a layer's own are called where one of both is to
            be trained, or has a learning rate of its own.
        shape: (m, n) of each layer.
        group: the name of the group.
    """

    method: ClassVar[Method]
    starts: ClassVar[tuple[str, ...]]
    part_names: ClassVar[tuple[str, str]] = ("shared", "own")

    def __init__(self, shape: tuple[int, int], group: str = "") -> None:
        super().__init__()
        self.shape, self.group = shape, group

    @classmethod
    def settled(cls, options: Mapping[str, Any], group: Group) -> Mapping[str, Any]:
        """The options of a group, checked and complete; an error names the group."""
        return options

    @classmethod
    def require_start(cls, init: str, trained: str) -> None:
        """Refuse a start that is not known, or from which nothing could be trained."""
        if init not in cls.starts:
            raise OptionError(f"init must be {choice_of(cls.starts)}; found {init!r}")

    @classmethod
    @abstractmethod
    def begin(cls, group: Group, start: Start) -> tuple[Self, list[Own]]:
        """The form of a group, and what each of its layers has for itself, with first values."""

    @abstractmethod
    def forward(self, x: Tensor, own: Own, site: Site) -> Tensor:
        """X (…, n) times ΔWᵀ: (…, m), without scale."""

    @abstractmethod
    def delta(self, own: Own, site: Site, scale: float = 1.0) -> Tensor:
        """The matrix scale · ΔW (m, n), in float32 or wider: the one place where it is formed."""

    def rows(self, index: Tensor, own: Own, site: Site) -> Tensor:
        """Rows of ΔWᵀ (…, m): what an embedding adds for these entries; refused by default."""
        raise UnsupportedError(
            f"{self.method.label} adapts no embeddings; leave them out of the targets"
        )

    def added(self, result: Tensor, x: Tensor, own: Own, site: Site, scale: float) -> Tensor:
        """A result (…, m) plus scale · x ΔWᵀ; the place for fewer products than that takes."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(next(iter(own.values()), next(self.parameters(), x)).dtype)
        return result + (scale * self.forward(x, own, site)).to(result.dtype)

    def added_rows(
        self, result: Tensor, index: Tensor, own: Own, site: Site, scale: float | Tensor
    ) -> Tensor:
        """The same for an embedding."""
        return result + (scale * self.rows(index, own, site)).to(result.dtype)

    def shared(self) -> dict[str, Tensor]:
        """The tensors that the group has once, by name."""
        return {name: getattr(self, name) for name in self.method.shared}

    def stack(self, owns: Sequence[Own], sites: Sequence[Site]) -> Stack:
        """The updates of the group's layers as a stack of the library, without scale."""
        shared = {name: x.detach() for name, x in self.shared().items()}
        like = next(x for held in (shared, *owns) for x in held.values())
        kept = [{name: x.detach().to(like) for name, x in own.items()} for own in owns]
        return self.method.stack(shared, kept, sites)

    @torch.no_grad()
    def load(self, stack: Stack) -> list[Own]:
        """Take shared values from a stack of the same sizes, and give those of each layer."""
        shared, owns = self.method.apart(stack)
        for name, value in shared.items():
            getattr(self, name).copy_(torch.as_tensor(value))
        return [{name: torch.as_tensor(x) for name, x in own.items()} for own in owns]

    def parts(self, own: Own) -> dict[str, Iterable[Tensor]]:
        """The parameters of a layer by what they are called together."""
        shared, mine = self.part_names
        return {shared: self.parameters(), mine: own.values()}

    def frozen(self, values: Mapping[str, Tensor] | None = None) -> Self:
        """A copy that is not trained, with other values where they are given."""
        made = copy.deepcopy(self).requires_grad_(False)
        if values is not None:
            made.load_state_dict(values, assign=True)
        return made

    @classmethod
    def require_trained(cls, what: str) -> None:
        """Refuse a choice of parameters that is not known."""
        if what not in (known := ("all", *reversed(cls.part_names))):
            raise OptionError(f"train must be {choice_of(known)}; found {what!r}")

    def require_fit(self, own: Own, shape: tuple[int, int]) -> None:
        """Refuse a layer of another shape, and own tensors that do not fit the shared ones."""
        if self.shape != shape:
            raise FormatError(
                f"the {self.method.holder} of group {self.group!r} are for layers of shape "
                f"{self.shape}; this layer has {shape}"
            )
        wanted = self.method.own(self.shared())
        if wanted.keys() != own.keys():
            raise FormatError(f"a layer has {list(wanted)} of its own; found {list(own)}")
        for name, value in own.items():
            if wanted[name] not in (None, found := tuple(value.shape)):
                raise FormatError(f"the {name} must be {wanted[name]}; found {found}")


def choice_of(names: Sequence[str]) -> str:
    """A choice in a sentence."""
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


FORMS: dict[str, type[Form]] = {}
"""The registered forms by the names of their methods."""

F = TypeVar("F", bound=type[Form])


def register(form: F) -> F:
    """Make a form known by its name, here and to the reader of PEFT's folders."""
    known = FORMS.get(form.method.name)
    if known is not None and known.__qualname__ != form.__qualname__:
        raise OptionError(
            f"a form is called {form.method.name!r} already ({known.__qualname__}); rename yours"
        )
    FORMS[form.method.name], METHODS[form.method.kind] = form, form.method
    return form
