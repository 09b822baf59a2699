"""x V, once for the layers of a block that are given the same x."""

import weakref
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor


def times(x: Tensor, factor: Tensor) -> Tensor:
    """The product x @ factor, in the factor's dtype or in that of autocast."""
    if not torch.is_autocast_enabled(x.device.type):
        x = x.to(factor.dtype)
    return x @ factor


@dataclass
class _Seen:
    """The last product, for a layer beside the one that asked for it."""

    key: tuple[Any, ...]
    v: Tensor
    x: weakref.ref[Tensor]
    product: Tensor
    asked: list[object]  # the layers that have had it


@final
class SharedProduct:
    """The product x V, remembered between the calls of layers that stand beside each other.

    Queries, keys and values of a block share V and are given one x, but each is called by itself.
    The products with V are most of what the update costs, so the first layer's is kept for the
    others. It is one node of the graph then, so its gradient is one product as well.

    Nothing is kept once all have asked, and no layer is given its own product again: whether there
    is a product to share depends on the order of the calls alone, so that a block which is
    computed again for its gradient does the same again. A product serves only while x and V are
    the same tensors, unchanged (by their version counters), under the same autocast and gradient
    mode; x is held weakly. While a graph is being compiled nothing is kept, since the compiler
    finds equal products itself; nor in inference mode, where nothing tells whether x was changed
    in between.

    Attributes:
        on: whether products are shared at all, by any object of this class; True at first.

    Examples:
        >>> product, x, v = SharedProduct(), torch.ones(2, 4), torch.ones(4, 3)
        >>> product(x, v, "q", 2) is product(x, v, "k", 2)
        True
        >>> product.seen is None
        True
    """

    on: ClassVar[bool] = True

    def __init__(self) -> None:
        self.seen: _Seen | None = None

    def __call__(self, x: Tensor, v: Tensor, asker: object, layers: int) -> Tensor:
        """The product of x (…, n) and V (n, r), once where `layers` ask with one x in turn."""
        there = v.to(x.device)
        if not self.on or layers < 2 or torch.compiler.is_compiling() or x.is_inference():
            return times(x, there)
        device = x.device.type
        key = (
            v._version,
            x._version,
            torch.is_grad_enabled(),
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        )
        seen = self.seen
        if (
            seen is not None
            and seen.x() is x
            and seen.v is v
            and seen.key == key
            and not any(asker is other for other in seen.asked)
        ):
            seen.asked.append(asker)
            if len(seen.asked) == layers:
                self.seen = None
            return seen.product
        product = times(x, there)
        self.seen = _Seen(key, v, weakref.ref(x), product, [asker])
        return product

    def __reduce__(self) -> tuple[type["SharedProduct"], tuple[()]]:
        """Copied and saved empty: what was seen belongs to a graph."""
        return SharedProduct, ()
