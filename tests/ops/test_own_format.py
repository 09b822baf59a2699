"""A format from outside the package has the whole algebra, on every backend."""

from functools import partial

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn import ops
from lotr_tn._arrays import cast
from lotr_tn.errors import FormatError, OptionError
from lotr_tn.formats import Dense, Format, LoRAStack, Tucker2
from lotr_tn.ops.primitives import (
    by_rule_or_hub,
    lowered,
    register_format,
    registered_formats,
    rule,
    unregister_format,
)
from lotr_tn.testing import check_decomposition, laws, strategies
from tests import toy_format
from tests.conftest import on_backend
from tests.ops.test_laws import LAWS, hold
from tests.toy_format import Toy

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def registered():
    toy_format.register()
    yield
    toy_format.unregister()


def toy(shape=(4, 7, 5), rank=3):
    (layers, m, n), draw = shape, RNG.standard_normal
    return Toy(draw((m, rank)), draw((layers, rank)), draw((n, rank)))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("law", LAWS)
def test_law(law, backend):
    hold(law, Toy, backend, "float64")


def test_what_is_linear_in_one_field_stays_in_the_format():
    stack = toy()
    for made in (2 * stack, stack.T, stack + stack, lt.take_layers(stack, [2, 0])):
        assert type(made) is Toy
    assert (stack + stack).u is stack.u  # shared factors stay one
    assert type(lt.merge(stack, [1.0, -2.0, 0.5, 1.0])) is Toy
    wanted = (laws.dense_updates(stack) * np.array([1, -2, 0.5, 1])[:, None, None]).sum(0)
    merged = lt.merge(stack, [1.0, -2.0, 0.5, 1.0])
    assert np.allclose(laws.dense_updates(merged)[0], wanted, rtol=1e-13)


@pytest.mark.parametrize("method", ["ties", "dare", "slerp"])
def test_other_merges_work(method):
    stack = lt.take_layers(toy(), [0, 1])
    merged = lt.merge(stack, [1.0, 0.5], method=method)
    wanted = lt.merge(lt.convert(stack, Tucker2), [1.0, 0.5], method=method)
    assert type(merged) is (Toy if method == "slerp" else Tucker2)
    assert np.allclose(laws.dense_updates(merged), laws.dense_updates(wanted), atol=1e-12)


def test_mixtures_meet_in_the_hub():
    stack = toy()
    other = lt.LoRAStack(RNG.standard_normal((7, 4)), RNG.standard_normal((4, 5)), (1,) * 4)
    assert type(stack + other) is Tucker2
    assert type(other - stack) is Tucker2
    assert type(lt.concat_layers([stack, Dense(np.ones((2, 7, 5)))])) is Dense


def test_rounding_is_done_in_the_hub_and_says_so():
    stack = toy()
    for made in (
        lt.round(stack, 2),
        lt.canonicalize(stack),
        lt.decompose.regauge(stack, "balanced"),
    ):
        assert type(made) is Tucker2
    assert lt.round(stack, 2).certificate.relative_error == pytest.approx(
        float(lt.distance(stack, lt.round(stack, 2)) / lt.norm(stack)), rel=1e-12
    )
    assert float(lt.distance(stack, lt.canonicalize(stack))) <= 1e-13 * float(lt.norm(stack))
    for decompose in (lt.hosvd, lt.st_hosvd, lt.hooi):
        assert decompose(stack, 2).certificate.relative_error > 0
    assert lt.tucker1(stack, 2).rank == 2
    assert lt.low_rank_tucker2(stack, (3, 3), 5).shared_ranks == (3, 3)
    start = lt.decompose.initial_factors(stack, (2, 2))
    rest = laws.dense_updates(start.factors) + laws.dense_updates(start.residual)
    assert np.allclose(rest, laws.dense_updates(stack), atol=1e-12)


def test_decompositions_of_the_format_keep_their_laws():
    stacks = strategies.stacks_of(Toy, degenerate=False)
    report = check_decomposition(lt.hosvd, stacks=stacks, max_examples=5)
    assert report.holds, report


def test_a_rule_is_taken_in_place_of_the_hub():
    seen = []

    @rule("apply", Toy)
    def apply(stack, x, *, layer=None):
        seen.append(layer)
        return (
            NotImplemented if layer is None else ((x @ stack.v) * stack.weights[layer]) @ stack.u.T
        )

    @rule("round_stack", Toy)
    def round_stack(stack, ranks, *, dtype=None):
        kept = np.argsort(-np.abs(stack.weights).max(axis=0))[: ranks.r1]
        return Toy(stack.u[:, kept], stack.weights[:, kept], stack.v[:, kept])

    stack, x = toy(), RNG.standard_normal((2, 5))
    laws.one_layer_is_applied_alone(ops.apply, stack, x, 1)
    laws.apply_is_the_matrix_product(ops.apply, stack, x)
    assert {1, None} <= set(seen)
    assert type(lt.round(stack, 2)) is Toy


def test_registering_refuses_what_cannot_work():
    class Wrong(toy_format.Primitives):
        layered = "none"

    with pytest.raises(
        FormatError, match=r"layered must name one of the arrays of Toy, u, weights"
    ):
        register_format(Toy, Wrong())
    with pytest.raises(FormatError, match="inherits from"):
        register_format(LoRAStack, toy_format.Primitives())
    with pytest.raises(OptionError, match="a rule is for one of"):
        rule("aply", Toy)

    class Bare(Format):
        pass

    with pytest.raises(FormatError, match="must be a dataclass with fields annotated Array"):
        register_format(Bare, toy_format.Primitives())
    with pytest.raises(FormatError, match="Bare has no primitives"):
        lowered(Bare())


def test_convert_names_the_formats_of_the_registry():
    stack = toy()
    assert Toy in registered_formats()
    with pytest.raises(OptionError, match=r"Dense, CP, TensorTrain or Toy; found <class 'int'>"):
        lt.convert(stack, int)
    unregister_format(Toy)
    with pytest.raises(FormatError, match="Toy has no primitives"):
        lt.norm(stack)


def test_a_format_that_cannot_hold_an_update_says_so():
    class Narrow(toy_format.Primitives):
        def of_lora(self, stack, *, xp):
            return None

    register_format(Toy, Narrow())
    with pytest.raises(
        OptionError, match=r"a Toy cannot hold a Dense of shape \(4, 7, 5\) exactly"
    ):
        lt.convert(Dense(np.ones((4, 7, 5))), Toy)


def test_half_precision_moves_and_prints():
    stack = lt.astype(toy(), "float16")
    assert stack.weights.dtype == np.float16
    assert repr(stack).startswith("Toy(u=")
    assert lt.parameter_count(stack) == 7 * 3 + 4 * 3 + 5 * 3
    x = cast(RNG.standard_normal((2, 5)), "float16", xp=np)
    assert lt.apply(stack, x).dtype == np.float16


def test_derivatives_flow_through_the_hub():
    torch = pytest.importorskip("torch")
    stack = toy()
    moved = Toy(
        *(on_backend(x, "torch").requires_grad_() for x in (stack.u, stack.weights, stack.v))
    )
    lt.inner(moved, moved).backward()
    assert all(torch.isfinite(x.grad).all() for x in (moved.u, moved.weights, moved.v))


def test_nothing_is_left_to_a_stranger_by_silence():
    class Stranger(Format):
        shape = (4, 7, 5)

    for operation in (lt.norm, lt.to_dense, lt.transpose, partial(lt.scale, factor=2.0)):
        with pytest.raises((FormatError, TypeError)):
            operation(Stranger())
    with pytest.raises(FormatError):
        by_rule_or_hub(lt.norm, Stranger())
