"""Numbers that are not finite, or far from 1: refused or right, on every way that they can take."""

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn import analysis, ops
from lotr_tn._arrays import from_numpy, to_numpy
from lotr_tn.errors import BackendError, FormatError
from lotr_tn.ops.magnitude import measured

RANKS = (2, 3, 1)


def stacks(size=1.0, dtype=np.float64):
    """One small stack in each core format, its first array times `size`."""
    rng = np.random.default_rng(0)
    shapes = {
        lt.LoRAStack: [(9, 6), (6, 7)],
        lt.Tucker2: [(9, 2), (3, 2, 3), (7, 3)],
        lt.LowRankTucker2: [(9, 4), (4, 6), (6, 4), (7, 4)],
        lt.Tucker1: [(7, 3), (3, 9, 3)],
        lt.Dense: [(3, 9, 7)],
    }
    ends = {lt.LoRAStack: (RANKS,), lt.LowRankTucker2: (RANKS,)}
    for kind, each in shapes.items():
        arrays = [rng.standard_normal(shape) for shape in each]
        arrays[0] = arrays[0] * size
        yield kind(*(x.astype(dtype) for x in arrays), *ends.get(kind, ()))


DECOMPOSITIONS = {
    "hooi": lambda s: lt.hooi(s, lt.RelativeError(0.1)),
    "hosvd": lambda s: lt.hosvd(s, (2, 2)),
    "st_hosvd": lambda s: lt.st_hosvd(s, lt.Budget(params=30)),
    "tucker1": lambda s: lt.tucker1(s, lt.RelativeError(0.1)),
    "low_rank_tucker2": lambda s: lt.low_rank_tucker2(s, (3, 3), 4),
    "round": lambda s: lt.round(s, lt.RelativeError(0.1)),
    "compress": lambda s: analysis.compress(s, lt.RelativeError(0.1)),
    "merge": lambda s: lt.merge(s, (1, -1, 0.5)),
    "ties": lambda s: lt.merge(s, (1, -1, 0.5), method="ties", density=0.5),
}
MEASURES = {
    "norm": lt.norm,
    "layer_norms": ops.layer_norms,
    "layer_singular_values": ops.layer_singular_values,
    "distance": lambda s: lt.distance(s, s),
    "inner": lambda s: lt.inner(s, s),
    "cosine": lambda s: lt.cosine(s, s),
    "gram": lambda s: ops.gram([s, s]),
    "canonicalize": lt.canonicalize,
    "error_surface": analysis.error_surface,
    "mode_spectra": analysis.mode_spectra,
    "subspace_overlaps": analysis.subspace_overlaps,
}


def broken(stack, field, bad):
    """The stack with one number of one array replaced, in layer 1 where it has layers."""
    x = getattr(stack, field).copy()
    x[(1,) * x.ndim if x.ndim == 3 else (0, 3) if field == "up" else (3, 0)] = bad
    return ops.arrays.with_arrays(stack, **{field: x})


@pytest.mark.parametrize("name", [*DECOMPOSITIONS, *MEASURES])
@pytest.mark.parametrize("bad", [np.nan, -np.inf], ids=str)
def test_not_finite_is_refused_by_field(name, bad):
    run = {**DECOMPOSITIONS, **MEASURES}[name]
    for dtype in (np.float32, np.float64):
        for stack in stacks(dtype=dtype):
            if name == "canonicalize" and isinstance(stack, lt.Dense):
                continue
            for field in ops.arrays.arrays_of(stack):
                with pytest.raises(FormatError, match=f"^{field} holds NaN or infinity"):
                    run(broken(stack, field, bad))


def test_the_layer_is_named():
    lora, tucker, *_ = stacks()
    for stack, field in ((lora, "up"), (lora, "down"), (tucker, "core")):
        with pytest.raises(FormatError, match="first in layer 1;"):
            lt.norm(broken(stack, field, np.nan))


@pytest.mark.parametrize("size", [1e-300, 1e-180, 1e-150, 1e150, 1e200])
@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_sizes_change_nothing_but_the_size(name, size):
    """A power of two near it: every error, bound and rank is that of the stack near 1."""
    power = 2.0 ** round(np.log2(size))
    for near, far in zip(stacks(), stacks(power), strict=True):
        wanted, found = DECOMPOSITIONS[name](near), DECOMPOSITIONS[name](far)
        assert ops.parameter_count(found) == ops.parameter_count(wanted)
        scaled = lt.scale(lt.convert(found, lt.Dense), 1 / power)
        assert lt.distance(scaled, lt.convert(wanted, lt.Dense)) <= 1e-12 * lt.norm(near)
        if (known := getattr(wanted, "certificate", None)) is not None:
            told = found.certificate
            assert told.relative_error == pytest.approx(known.relative_error, rel=1e-6, abs=1e-13)
            assert told.upper_bound == pytest.approx(known.upper_bound, rel=1e-6, abs=1e-13)
            assert told.norm == pytest.approx(known.norm * power, rel=1e-9)


@pytest.mark.parametrize("size", [1e-180, 1e180])
def test_measures_of_any_size(size):
    power = 2.0 ** round(np.log2(size))
    for near, far in zip(stacks(), stacks(power), strict=True):
        assert lt.norm(far) == pytest.approx(lt.norm(near) * power, rel=1e-12)
        assert lt.cosine(far, near) == pytest.approx(1.0)
        assert lt.inner(far, near) == pytest.approx(lt.inner(near, near) * power, rel=1e-12)
        errors = [analysis.error_surface(x).errors for x in (near, far)]
        np.testing.assert_allclose(*errors, rtol=1e-9, atol=1e-13)
        spectra = [analysis.mode_spectra(x) for x in (near, far)]
        assert spectra[1].norm == pytest.approx(spectra[0].norm * power, rel=1e-12)
        assert spectra[0].numerical_ranks == spectra[1].numerical_ranks


def test_factors_of_opposite_sizes():
    """Each beyond what can be squared, their product near 1: also stored narrower."""
    near = next(stacks())
    far = lt.LoRAStack(near.up * 2.0**600, near.down * 2.0**-600, RANKS)
    for dtype in ("float64", "float32"):
        found, wanted = (lt.hooi(x, (2, 2), dtype=dtype) for x in (far, near))
        np.testing.assert_allclose(found.core, wanted.core, rtol=1e-5, atol=1e-12)
        assert found.certificate.relative_error == pytest.approx(wanted.certificate.relative_error)


def test_what_does_not_fit_is_refused():
    lora = next(stacks())
    huge = lt.LoRAStack(lora.up * 1e160, lora.down * 1e160, RANKS)
    for run in (lt.norm, *DECOMPOSITIONS.values()):
        with pytest.raises(FormatError, match="beyond the range of float64"):
            run(huge)
    for size in (1e-180, 1e180):
        with pytest.raises(FormatError, match="do not fit float32; choose float64"):
            lt.hooi(lt.LoRAStack(lora.up * size, lora.down, RANKS), (2, 2), dtype="float32")
    big = lt.LoRAStack(*(1e19 * x.astype(np.float32) * 30 for x in (lora.up, lora.down)), RANKS)
    with pytest.raises(FormatError, match="do not fit float32, whose largest is"):
        lt.hooi(big, (2, 2))
    with pytest.raises(FormatError, match="do not fit float32"):
        lt.scale(big, 1e30)
    with pytest.raises(FormatError, match="do not fit float32"):
        lt.to_dense(big)


def test_terms_without_room_in_float32_may_cancel():
    """1e38 · 30 is beyond float32: what is left of two such terms is not."""
    up = np.array([[1e19, -1e19], [1e19, 0.0]], dtype=np.float32)
    down = np.array([[3e20, 1.0], [3e20, 1.0]], dtype=np.float32)
    stack = lt.LoRAStack(up[:1], down, (2,))
    assert lt.to_dense(stack).tolist() == [[[0.0, 0.0]]]
    with pytest.raises(FormatError, match="do not fit float32"):
        lt.to_dense(lt.LoRAStack(up, down, (2,)))


def cancelling(dtype, size=1.0):
    """Three layers, of which the first and the last are x y − x y = 0, in formats with factors."""
    rng = np.random.default_rng(1)
    x, y = size * rng.standard_normal((9, 2)), rng.standard_normal((2, 7))
    up = np.concatenate([x, -x, x, x, x, -x], axis=1)
    return lt.LoRAStack(up.astype(dtype), np.tile(y, (6, 1)).astype(dtype), (4, 4, 4))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_what_cancels_is_zero(dtype, backend):
    stack = cancelling(dtype)
    parts = (from_numpy(x, backend=backend) for x in (stack.up, stack.down))
    stack = lt.LoRAStack(*parts, stack.ranks)
    norms = to_numpy(ops.layer_norms(stack))
    assert norms[0] == norms[2] == 0 < norms[1]
    alone = ops.take_layers(stack, [0, 2])
    assert lt.norm(alone) == lt.cosine(alone, alone) == 0
    for name in ("hooi", "hosvd", "tucker1", "low_rank_tucker2", "round", "compress"):
        for one in (stack, alone):
            found = DECOMPOSITIONS[name](one)
            known = found.certificate
            if known is not None:
                assert known.relative_error < 1
                assert np.isfinite(known.layer_errors).all()
        if name != "compress":
            assert not to_numpy(lt.to_dense(found)).any()


def test_a_small_rest_is_not_taken_for_rounding():
    """Of narrow factors too, where Gram matrices would leave no digit of it."""
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((9, 1)).astype("f4"), rng.standard_normal((1, 7)).astype("f4")
    other = np.nextafter(x, np.inf, dtype=np.float32)
    stack = lt.LoRAStack(np.hstack([other, -x]), np.vstack([y, y]), (2,))
    true = np.linalg.norm((other.astype(float) - x) @ y)
    assert lt.norm(stack) == pytest.approx(true, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_bounds_hold_where_storage_underflows(dtype):
    size = {"float16": 1e-4, "float32": 3e-22}[dtype]
    lora = next(stacks())
    stack = lt.LoRAStack(*((size * x).astype(dtype) for x in (lora.up, lora.down)), RANKS)
    for name in ("hosvd", "tucker1", "low_rank_tucker2", "round"):
        found = {
            "hosvd": lambda s: lt.hosvd(s, (6, 6)),
            "tucker1": lambda s: lt.tucker1(s, 6),
            "low_rank_tucker2": lambda s: lt.low_rank_tucker2(s, (6, 6), 6),
            "round": lambda s: lt.round(s, 3, dtype=dtype),
        }[name](stack)
        truth = np.stack(
            [stack.up[:, p].astype(float) @ stack.down[p].astype(float) for p in stack.slices]
        )
        true = np.linalg.norm(truth - lt.to_dense(ops.astype(found, "float64")))
        assert found.certificate.distance == pytest.approx(true, rel=1e-6)
        assert true <= found.certificate.upper * (1 + 1e-6)


def test_arrays_without_numbers_are_refused():
    torch = pytest.importorskip("torch")
    stack = lt.LoRAStack(torch.ones(9, 2, device="meta"), torch.ones(2, 7, device="meta"), (2,))
    for run in (lt.norm, lambda s: lt.distance(s, s), lambda s: lt.hooi(s, 1)):
        with pytest.raises(BackendError, match="device meta, which holds no numbers"):
            run(stack)


def test_measures_may_be_scalars_without_a_device():
    """As those of NumPy 2.0 are."""

    class Scalar(np.float64):
        @property
        def device(self):
            raise AttributeError("device")

    assert measured(lambda stack: Scalar(2.0))(next(stacks())) == 2.0
