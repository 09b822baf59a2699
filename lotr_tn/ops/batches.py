"""Layers of one size at once: of many small factorisations most of the time is in their calls."""

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

import array_api_compat
import numpy as np

from lotr_tn._arrays import BLOCK_ELEMENTS, Array, Namespace

T = TypeVar("T")


def batches(sizes: Sequence[Hashable], entries: int) -> Iterator[list[int]]:
    """The places of equal sizes, together; so many that a block holds what each needs."""
    most = max(1, BLOCK_ELEMENTS // max(1, entries))
    alike: dict[Hashable, list[int]] = {}
    for place, size in enumerate(sizes):
        alike.setdefault(size, []).append(place)
    for places in alike.values():
        yield from (places[at : at + most] for at in range(0, len(places), most))


def in_batches(
    sizes: Sequence[Hashable], entries: int, made: Callable[[list[int]], Iterable[T]]
) -> list[T]:
    """What is made for each place, in order, of all that are of one size at once."""
    found: dict[int, T] = {}
    for places in batches(sizes, entries):
        found |= zip(places, made(places), strict=True)
    return [found[place] for place in range(len(sizes))]


def side_by_side(x: Array, parts: Sequence[slice], places: Sequence[int], xp: Namespace) -> Array:
    """(G, m, w) of x (m, R): the columns of some parts of one width w, each for itself."""
    chosen = [parts[place] for place in places]
    width = chosen[0].stop - chosen[0].start
    if all(one.stop == other.start for one, other in itertools.pairwise(chosen)):
        columns = x[:, chosen[0].start : chosen[-1].stop]
    else:
        places = [column for part in chosen for column in range(part.start, part.stop)]
        where = xp.asarray(places, dtype=xp.int64, device=array_api_compat.device(x))
        columns = xp.take(x, where, axis=1)
    return xp.permute_dims(xp.reshape(columns, (x.shape[0], len(chosen), width)), (1, 0, 2))


def row_norms(x: Array, *, xp: Namespace) -> Array:
    """(G,) of (G, …): the root of the sum of squares of each, scaled so that none overflows."""
    if 0 in x.shape:
        return xp.zeros((x.shape[0],), dtype=x.dtype, device=array_api_compat.device(x))
    if isinstance(x, np.ndarray):  # the same in half the time, for small arrays
        flat = x.reshape(len(x), -1)
        largest = np.abs(flat).max(axis=1)
        largest[largest == 0] = 1
        return largest * np.sqrt(np.square(flat / largest[:, None]).sum(axis=1))
    flat = xp.reshape(x, (x.shape[0], -1))
    largest = xp.max(xp.abs(flat), axis=1)
    scale = xp.where(largest == 0, xp.ones_like(largest), largest)
    return scale * xp.sqrt(xp.sum((flat / scale[:, None]) ** 2, axis=1))
