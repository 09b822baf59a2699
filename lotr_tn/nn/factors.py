"""U and V, held once for all the layers of a group."""

import weakref
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from lotr_tn.errors import FormatError
from lotr_tn.formats import Tucker2

__all__ = ["SharedFactors"]


@dataclass
class _Seen:
    """The last x V, for a layer beside the one that asked for it."""

    key: tuple[Any, ...]
    v: Tensor
    x: weakref.ref[Tensor]
    product: Tensor
    asked: list[object]  # the layers that have had it


@final
class SharedFactors(nn.Module):
    """U (m, r1) and V (n, r2) of all layers of a group.

    Every layer of the group holds this one module. So whatever moves, casts, copies, saves or
    replaces its two parameters does it once and for all of them: `.to()`, `deepcopy`,
    `load_state_dict`, `torch.save` and wrappers for many devices keep them shared.

    Attributes:
        u: (m, r1), the output side.
        v: (n, r2), the input side.
        group: the name of the group.

    Args:
        u: its values; they are copied.
        v: likewise.
        group: the name of the group.

    Raises:
        FormatError: u or v is no matrix.

    Examples:
        >>> factors = SharedFactors(torch.ones(5, 2), torch.ones(4, 3))
        >>> factors.shape, factors.ranks
        ((5, 4), (2, 3))
    """

    def __init__(self, u: Tensor, v: Tensor, group: str = "") -> None:
        super().__init__()
        for name, value in (("u", u), ("v", v)):
            if value.ndim != 2:
                raise FormatError(f"{name} must be a matrix; found shape {tuple(value.shape)}")
        self.u = nn.Parameter(u.detach().clone())
        self.v = nn.Parameter(v.detach().clone())
        self.group = group
        self._seen: _Seen | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.u.shape[0], self.v.shape[0]

    @property
    def ranks(self) -> tuple[int, int]:
        """(r1, r2)."""
        return self.u.shape[1], self.v.shape[1]

    def stack(self, cores: list[Tensor]) -> Tucker2:
        """The updates of layers with these cores (r1, r2), as a stack of the library."""
        return Tucker2(self.u.detach(), torch.stack(cores).to(self.u), self.v.detach())

    def project(self, x: Tensor, asker: object, layers: int) -> Tensor:
        """The product x V, once where `layers` of one block ask for it with the same x in turn.

        They share one product in the graph, so its gradient is one product as well. Nothing is
        kept once all have asked, and no layer is given its own product again: whether there is a
        product to share depends on the order of the calls alone, so that a block which is
        computed again for its gradient does the same again. While a graph is being compiled
        nothing is kept, since the compiler finds equal products itself; nor in inference mode,
        where nothing tells whether x was changed in between.
        """
        if layers < 2 or torch.compiler.is_compiling() or x.is_inference():
            return self._product(x)
        device = x.device.type
        key = (
            self.v._version,
            x._version,
            torch.is_grad_enabled(),
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        )
        seen = self._seen
        if (
            seen is not None
            and seen.x() is x
            and seen.v is self.v
            and seen.key == key
            and not any(asker is other for other in seen.asked)
        ):
            seen.asked.append(asker)
            if len(seen.asked) == layers:
                self._seen = None
            return seen.product
        product = self._product(x)
        self._seen = _Seen(key, self.v, weakref.ref(x), product, [asker])
        return product

    def _product(self, x: Tensor) -> Tensor:
        v = self.v.to(x.device)
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(v.dtype)
        return x @ v

    def __getstate__(self) -> dict[str, Any]:
        """All but what was seen last, which belongs to a graph and is neither copied nor saved."""
        return self.__dict__ | {"_seen": None}

    def extra_repr(self) -> str:
        """The sizes, for `print`."""
        (m, n), (r1, r2) = self.shape, self.ranks
        return f"group={self.group!r}, m={m}, n={n}, r1={r1}, r2={r2}"
