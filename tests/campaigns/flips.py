"""A bit that is not as it was written: noticed, or of no consequence for any number."""

import random
from pathlib import Path

import numpy as np

from lotr_tn.errors import LotrError
from tests.campaigns import inputs
from tests.campaigns.campaign import DefectError


def flips(rng: random.Random, folder: Path) -> str:
    """One bit of a file with digests is flipped; the numbers are as before, or there are none."""
    path = inputs.copied(rng.choice(list(inputs.FILES)), folder)
    wanted = inputs.updates(path)
    raw = bytearray(path.read_bytes())
    at, bit = rng.randrange(len(raw)), rng.randrange(8)
    raw[at] ^= 1 << bit
    path.write_bytes(raw)
    try:
        found = inputs.updates(path)
    except LotrError:
        return "noticed"
    except Exception as error:
        raise DefectError(f"{type(error).__name__} leaves the reader: {error}") from error
    if {name: set(one) for name, one in found.items()} != {
        name: set(one) for name, one in wanted.items()
    }:
        raise DefectError(f"{path.name}: bit {bit} of byte {at} changes what there is")
    for name, one in wanted.items():
        for module, update in one.items():
            if not np.array_equal(update, found[name][module]):
                raise DefectError(f"{path.name}: bit {bit} of byte {at} changes numbers in silence")
    return "of no consequence"
