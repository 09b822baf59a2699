"""Numbers of every size against dense sums: what is told is so, or is refused."""

import random
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

import lotr_tn as lt
from lotr_tn._arrays import to_numpy
from lotr_tn.errors import LotrError
from lotr_tn.formats import Stack
from lotr_tn.ops.arrays import arrays_of, with_arrays
from tests.campaigns.campaign import DefectError

UNIT = {"float32": 1e-6, "float64": 1e-13}
"""What arithmetic of that precision may be off by, relative to the sizes of factors."""

EXPONENTS = {"float32": 15, "float64": 140}
"""Powers of ten between which norms of stacks are drawn."""


def numbers(rng: random.Random, folder: Path) -> str:
    """Norms, distances and errors of a drawn stack, on NumPy or torch."""
    dtype, draw = rng.choice(list(UNIT)), np.random.default_rng(rng.getrandbits(64))
    shape = tuple(rng.randint(1, 7) for _ in range(3))
    a, b = (_stack(rng, draw, shape, dtype) for _ in range(2))
    if rng.random() < 0.15:
        return _not_finite(rng, a, b)
    torch = rng.random() < 0.4
    one, other = (_on_torch(stack) if torch else stack for stack in (a, b))
    try:
        _measures(one, other, a, b, UNIT[dtype])
        _truncations(rng, one, a, UNIT[dtype])
    except LotrError as refusal:
        raise DefectError(f"refused though all is in range: {refusal}") from refusal
    return "torch" if torch else "numpy"


def _stack(
    rng: random.Random, draw: np.random.Generator, shape: tuple[int, ...], dtype: str
) -> Stack:
    """A stack of any core format whose layers may be zero, equal, or of sizes far apart."""
    layers, m, n = shape
    ranks = tuple(rng.randint(0, 4) for _ in range(layers))
    up, down = draw.standard_normal((m, sum(ranks))), draw.standard_normal((sum(ranks), n))
    if rng.random() < 0.3:
        up *= 10.0 ** draw.integers(-6, 1, sum(ranks))
    if rng.random() < 0.1:
        up[:] = 0
    exponent = rng.choice([0, 0, rng.uniform(-1, 1) * EXPONENTS[dtype]])
    half = 10.0 ** (exponent / 2)
    lora = lt.LoRAStack((half * up).astype(dtype), (half * down).astype(dtype), ranks)
    kinds = (lt.LoRAStack, lt.Tucker2, lt.LowRankTucker2, lt.Tucker1, lt.Dense)
    return lt.convert(lora, rng.choice(kinds))


def _on_torch(stack: Stack) -> Stack:
    import torch

    moved = {name: torch.from_numpy(np.asarray(x)) for name, x in arrays_of(stack).items()}
    return with_arrays(stack, **moved)


def _dense(stack: Stack) -> np.ndarray:
    return np.asarray(lt.to_dense(lt.astype(stack, "float64")), dtype=np.longdouble)


def _norm(x: np.ndarray) -> float:
    largest = np.abs(x).max(initial=0.0)
    return float(largest * np.sqrt(((x / largest) ** 2).sum())) if largest else 0.0


def _require(what: str, found: Any, wanted: float, slack: float) -> None:
    number = float(found)
    if not np.isfinite(number) or abs(number - wanted) > slack:
        raise DefectError(f"{what}: found {number:.6g}, and dense sums give {wanted:.6g}")


def _measures(one: Stack, other: Stack, a: Stack, b: Stack, unit: float) -> None:
    x, y = _dense(a), _dense(b)
    size, both = _norm(x), _norm(x) + _norm(y)
    _require("norm", lt.norm(one), size, 100 * unit * size)
    _require("distance", lt.distance(one, other), _norm(x - y), 100 * unit * both)
    _require("distance to itself", lt.distance(one, one), 0.0, 100 * unit * size)
    # what cancels is as accurate as its terms
    terms = with_arrays(a + b, **{name: abs(x) for name, x in arrays_of(a + b).items()})
    joint = prod(_norm(np.asarray(part, dtype=np.longdouble)) for part in arrays_of(a + b).values())
    slack = 100 * unit * both + min(unit * _norm(_dense(terms)), 100 * unit**2 * joint)
    _require("norm of a sum", lt.norm(one + other), _norm(x + y), slack)


def _truncations(rng: random.Random, one: Stack, a: Stack, unit: float) -> None:
    """The error told is the distance, the answer meets the question, and zero is zero."""
    x = _dense(a)
    size, epsilon = _norm(x), rng.choice([0.5, 0.1, 0.01])
    name, method = rng.choice(list(METHODS.items()))
    made = method(one, lt.RelativeError(epsilon))
    lost = _norm(_dense(_on_numpy(made)) - x)
    certificate = made.certificate
    assert certificate is not None
    told = float(certificate.relative_error)
    slack = 200 * unit + (0 if size else 1e-300)
    _require(f"relative error of {name}", told, lost / size if size else 0.0, slack)
    if told > epsilon * (1 + 1e-9) + slack:
        raise DefectError(f"{name} was asked for {epsilon}, and tells {told:.4g}")


def _on_numpy(stack: Stack) -> Stack:
    return with_arrays(stack, **{name: to_numpy(x) for name, x in arrays_of(stack).items()})


METHODS: dict[str, Callable[..., Any]] = {
    "hosvd": lt.hosvd,
    "st_hosvd": lt.st_hosvd,
    "hooi": lt.hooi,
    "tucker1": lt.tucker1,
    "round": lt.round,
}


def _not_finite(rng: random.Random, a: Stack, b: Stack) -> str:
    """A NaN or an infinity in a factor: no finite number comes out of it."""
    arrays = {name: np.array(x) for name, x in arrays_of(a).items()}
    name = rng.choice([name for name, x in arrays.items() if x.size] or [""])
    if not name:
        return "nothing to spoil"
    arrays[name].flat[rng.randrange(arrays[name].size)] = rng.choice([np.nan, np.inf, -np.inf])
    questions: dict[str, Callable[[Stack], Any]] = {
        "norm": lt.norm,
        "distance": lambda s: lt.distance(s, b),
        "hosvd": lambda s: lt.hosvd(s, lt.RelativeError(0.1)).certificate.relative_error,
        "round": lambda s: lt.round(s, lt.RelativeError(0.1)).certificate.relative_error,
    }
    question, ask = rng.choice(list(questions.items()))
    try:
        with np.errstate(all="ignore"):
            answer = float(ask(with_arrays(a, **arrays)))
    except LotrError:
        return "refused"
    if np.isfinite(answer):
        raise DefectError(f"{question} of what is not finite is {answer:.4g}")
    return "not finite out"
