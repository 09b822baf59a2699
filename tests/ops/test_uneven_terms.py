"""Terms whose size is on one side: 1e8 times 0, or times 1e-8. They count by what they add."""

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn import analysis, ops
from lotr_tn.ops.arrays import arrays_of, with_arrays
from lotr_tn.testing import laws
from tests.conftest import on_backend

EXPONENTS = {"float32": (28, -28, 0, -13, 45, -45), "float64": (60, -60, 0, -450, 450, 5)}
SHARED = {lt.Tucker2: ("u", "v"), lt.LowRankTucker2: ("u", "v"), lt.Tucker1: ("shared",)}

QUESTIONS = {
    "norm": lambda a, b: lt.norm(a),
    "norm of a sum": lambda a, b: lt.norm(a + b),
    "distance": lt.distance,
    "distance back": lambda a, b: lt.distance(b, a),
    "inner": lt.inner,
    "cosine": lt.cosine,
    "gram": lambda a, b: ops.gram([a, b]),
    "layer_norms": lambda a, b: ops.layer_norms(a),
    "nuclear": lambda a, b: ops.layer_norms(a, "nuclear"),
    "layer_distances": ops.layer_distances,
    "mode_spectra": lambda a, b: analysis.mode_spectra(a).left,
    "error_surface": lambda a, b: analysis.error_surface(a).errors,
} | {
    name: lambda a, b, made=made: made(a).certificate.relative_error
    for name, made in {
        "hosvd": lambda s: lt.hosvd(s, (2, 3)),
        "st_hosvd": lambda s: lt.st_hosvd(s, (3, 2)),
        "hooi": lambda s: lt.hooi(s, (2, 2)),
        "tucker1": lambda s: lt.tucker1(s, 3),
        "round": lambda s: lt.round(s, 2),
        "low_rank_tucker2": lambda s: lt.low_rank_tucker2(s, (3, 3), 4),
        "compress": lambda s: analysis.compress(s, lt.RelativeError(0.2)),
    }.items()
}


def pair(kind, dtype, backend):
    """A stack with empty rank terms, and the same updates with sizes moved to single sides."""
    rng = np.random.default_rng(3)
    ranks = (5, 4, 6)
    stack = lt.LoRAStack(rng.standard_normal((19, 15)), rng.standard_normal((15, 17)), ranks)
    if kind is not lt.LoRAStack:
        shapes = {
            lt.Tucker2: [(19, 5), (3, 5, 6), (17, 6)],
            lt.LowRankTucker2: [(19, 5), (5, 15), (15, 6), (17, 6)],
            lt.Tucker1: [(17, 6), (3, 19, 6)],
        }
        arrays = [rng.standard_normal(shape) for shape in shapes[kind]]
        stack = kind(*arrays, *((ranks,) if kind is lt.LowRankTucker2 else ()))
    empty = {name: x.copy() for name, x in arrays_of(stack).items()}
    for name in SHARED.get(kind, ("up",)):
        empty[name][:, [0, 3]] = 0
    even = with_arrays(stack, **{name: x.astype(dtype) for name, x in empty.items()})
    gauge = [np.diag(np.exp2(EXPONENTS[dtype][:size])) for size in laws.gauge_sizes(even)]
    uneven = laws.change_gauge(even, gauge)
    return (
        with_arrays(s, **{name: on_backend(x, backend) for name, x in arrays_of(s).items()})
        for s in (even, uneven)
    )


@pytest.mark.parametrize("backend", ["read-only numpy", "torch"])
@pytest.mark.parametrize("dtype", EXPONENTS)
@pytest.mark.parametrize("kind", [lt.LoRAStack, lt.Tucker2, lt.LowRankTucker2, lt.Tucker1])
def test_sizes_on_one_side_change_no_answer(kind, dtype, backend):
    even, uneven = pair(kind, dtype, backend)
    other = lt.scale(even, (0.5, -1.0, 2.0))
    size = float(lt.norm(even))
    for name, ask in QUESTIONS.items():
        found, wanted = (np.asarray(ask(stack, other)) for stack in (uneven, even))
        assert np.allclose(found, wanted, rtol=1e-6, atol=1e-7 * size), name
