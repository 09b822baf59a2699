import itertools
import math
import subprocess
import sys

import ml_dtypes
import numpy as np
import opt_einsum
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lotr_tn._arrays import to_numpy
from lotr_tn.contraction import ContractionPlan, plan
from lotr_tn.errors import BackendError, FormatError, OptionError
from tests.conftest import BACKENDS, on_backend

SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 1, "f": 6}
ELLIPSIS = (7, 8)


@st.composite
def contractions(draw, operands=(2, 4), ellipsis=True):
    """An equation, and operands whose axes all have different sizes."""
    terms, shapes = [], []
    for _ in range(draw(st.integers(*operands))):
        letters = draw(st.lists(st.sampled_from("abcdef"), max_size=4, unique=True))
        shape = [SIZES[letter] for letter in letters]
        if ellipsis and draw(st.booleans()):
            at, axes = draw(st.integers(0, len(letters))), draw(st.integers(0, len(ELLIPSIS)))
            letters[at:at], shape[at:at] = ["..."], ELLIPSIS[len(ELLIPSIS) - axes :]
        terms.append("".join(letters))
        shapes.append(tuple(shape))
    known = sorted(set("".join(terms)) - {"."})
    output = draw(st.lists(st.sampled_from(known), unique=True)) if known else []
    if any("..." in term for term in terms):
        output.insert(draw(st.integers(0, len(output))), "...")
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrays = [np.asarray(rng.standard_normal(shape)) for shape in shapes]
    return f"{','.join(terms)}->{''.join(output)}", arrays


def shapes_of(arrays) -> list[tuple[int, ...]]:
    return [x.shape for x in arrays]


def assert_is_the_contraction(found, equation, arrays, tolerance=1e-12):
    """Entry by entry, relative to what the sum would be without cancellation."""
    needed = np.einsum(equation, *arrays)
    scale = np.einsum(equation, *map(np.abs, arrays))
    assert found.shape == needed.shape
    assert np.all(np.abs(to_numpy(found) - needed) <= tolerance * scale)


def planned_and_drawn(equation, *shapes):
    rng = np.random.default_rng(0)
    return plan(equation, *shapes), [np.asarray(rng.standard_normal(shape)) for shape in shapes]


class Recorder(TorchDispatchMode):
    """What torch is asked to do: names, and entries of every array that is not a view."""

    def __init__(self):
        super().__init__()
        self.fresh: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        if result.untyped_storage().data_ptr() not in known:
            self.fresh.append((func.overloadpacket.__name__, result.numel()))
        return result


# The result


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=contractions())
def test_any_equation_agrees_with_einsum(backend, case):
    equation, arrays = case
    contract = plan(equation, *shapes_of(arrays))
    found = contract(*(on_backend(x, backend) for x in arrays))
    assert_is_the_contraction(found, equation, arrays)


@given(case=contractions(operands=(1, 1)))
def test_one_operand_is_summed_and_permuted(case):
    equation, arrays = case
    assert_is_the_contraction(plan(equation, *shapes_of(arrays))(*arrays), equation, arrays)


@given(case=contractions(operands=(5, 8), ellipsis=False))
def test_many_operands(case):
    equation, arrays = case
    assert_is_the_contraction(plan(equation, *shapes_of(arrays))(*arrays), equation, arrays)


@given(case=contractions(operands=(2, 3)), data=st.data())
def test_operands_may_lie_in_memory_in_any_order(case, data):
    equation, arrays = case
    arranged = []
    for x in arrays:
        order = data.draw(st.permutations(range(x.ndim)))
        y = x.transpose(order).copy().transpose(np.argsort(order))
        arranged.append(np.flip(np.flip(y).copy()) if data.draw(st.booleans()) else y)
    assert_is_the_contraction(plan(equation, *shapes_of(arrays))(*arranged), equation, arrays)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("empty", "abc")
@pytest.mark.parametrize(
    "equation", ["ab,bc->ac", "ab,bc->ca", "ab,ac->abc", "abc,cb->", "ab,bc,ca->b", "ab,c->ac"]
)
def test_empty_axes(equation, empty, backend):
    sizes = {"a": 2, "b": 3, "c": 4, empty: 0}
    terms = equation.partition("->")[0].split(",")
    arrays = [np.ones([sizes[letter] for letter in term]) for term in terms]
    found = plan(equation, *shapes_of(arrays))(*(on_backend(x, backend) for x in arrays))
    assert_is_the_contraction(found, equation, arrays)


@pytest.mark.parametrize("shape", [(), (5,), (5, 6)])
def test_an_ellipsis_stands_for_any_axes(shape, backend):
    shapes = ((*shape, 7), (7, 4), (2, 3, 4), (9, 3))
    contract, arrays = planned_and_drawn("...n,nq,lpq,mp->...lm", *shapes)
    found = contract(*(on_backend(x, backend) for x in arrays))
    assert found.shape == (*shape, 2, 9)
    assert_is_the_contraction(found, "...n,nq,lpq,mp->...lm", arrays)
    assert contract.asked == "...n,nq,lpq,mp->...lm"
    assert "." not in contract.equation


def test_letters_of_any_alphabet_and_blanks():
    contract, arrays = planned_and_drawn("αβ, βγ -> γα", (2, 3), (3, 4))
    assert_is_the_contraction(contract(*arrays), "ab,bc->ca", arrays)


DIFFERENTIABLE = [
    "ab,bc,dc->ad",  # matrices only
    "ab,cbd->cad",  # one matrix with each slice
    "eab,ebc->eac",  # a batch
    "aeb,bce->eca",  # a batch that does not come first
    "ab,ab->ab",  # entry by entry
    "a,b->ba",
    "abc,cd->d",  # letters summed alone
    "ab->ba",
    "ab,ab->",
]


@pytest.mark.parametrize("equation", DIFFERENTIABLE)
def test_gradients_flow(equation):
    terms = equation.partition("->")[0].split(",")
    shapes = [tuple(SIZES[letter] for letter in term) for term in terms]
    contract, arrays = planned_and_drawn(equation, *shapes)
    inputs = [torch.from_numpy(x).requires_grad_() for x in arrays]
    assert torch.autograd.gradcheck(contract, inputs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("equation", ["ab,bc->ac", "ab,bc->c", "ab,ab->ba"])
def test_the_dtype_stays(dtype, equation):
    shapes = ((2, 3), (2, 3) if equation.startswith("ab,ab") else (3, 4))
    contract, arrays = planned_and_drawn(equation, *shapes)
    stored = [x.astype(getattr(ml_dtypes, dtype, None) or dtype) for x in arrays]
    found = contract(*stored)
    assert found.dtype == stored[0].dtype
    exact = [x.astype(np.float64) for x in stored]
    assert_is_the_contraction(found.astype(np.float64), equation, exact, tolerance=2.0**-6)
    tensors = [torch.from_numpy(x).to(getattr(torch, dtype)) for x in exact]
    assert contract(*tensors).dtype == tensors[0].dtype
    assert_is_the_contraction(contract(*tensors).double(), equation, exact, tolerance=2.0**-6)


def test_operands_stay_as_they_are():
    contract, arrays = planned_and_drawn("ab,bc,cd->da", (2, 3), (3, 4), (4, 5))
    before = [x.copy() for x in arrays]
    contract(*arrays)
    assert all(np.array_equal(x, y) for x, y in zip(arrays, before, strict=True))


# The order and its cost


def test_shared_factors_cost_far_less_than_the_naive_loop():
    contract = plan("bi,iq,lpq,op->lbo", (32, 4096), (4096, 64), (32, 64, 64), (4096, 64))
    assert contract.flops == 2 * (32 * 4096 * 64 + 32 * 32 * 64 * 64 + 32 * 32 * 64 * 4096)
    assert contract.flops == pytest.approx(5.6e8, rel=0.01)
    assert contract.naive_flops == 4 * 32 * 4096 * 64 * 32 * 64 * 4096
    assert contract.naive_flops == pytest.approx(2.8e14, rel=0.01)
    assert contract.largest == 32 * 32 * 4096


@given(case=contractions())
def test_flops_are_those_of_opt_einsum_for_the_same_path(case):
    equation, arrays = case
    contract = plan(equation, *shapes_of(arrays))
    inputs, _, output = contract.equation.partition("->")
    terms = inputs.split(",")
    sizes = {
        c: n
        for term, x in zip(terms, arrays, strict=True)
        for c, n in zip(term, x.shape, strict=True)
    }
    sums, reduced = 0, []
    for number, term in enumerate(terms):  # what is summed alone is summed first, at 1 an entry
        others = output + "".join(terms[:number] + terms[number + 1 :])
        reduced.append("".join(letter for letter in term if letter in others))
        sums += math.prod(sizes[c] for c in term) if reduced[-1] != term else 0
    _, info = opt_einsum.contract_path(
        f"{','.join(reduced)}->{output}",
        *(tuple(sizes[c] for c in term) for term in reduced),
        shapes=True,
        optimize=list(contract.path),
    )
    assert contract.flops == info.opt_cost + sums
    assert contract.flops == sum(step.flops for step in contract.steps)
    if reduced == terms:
        assert contract.largest == info.largest_intermediate


@given(case=contractions())
def test_nothing_larger_than_planned_is_formed(case):
    equation, arrays = case
    contract = plan(equation, *shapes_of(arrays))
    tensors = [torch.from_numpy(x) for x in arrays]
    with Recorder() as seen:
        contract(*tensors)
    largest = max([contract.largest, *(x.size for x in arrays)])
    results = [math.prod(step.shape) for step in contract.steps]
    assert max(results, default=0) <= contract.largest
    for name, entries in seen.fresh:
        rearranged = name in ("clone", "copy_", "empty_like")
        assert entries <= (largest if rearranged else contract.largest), name


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bn,nq,pq,mp->bm", ((2, 7), (7, 3), (3, 3), (9, 3))),
        ("...n,nq,lpq,mp->...lm", ((5, 8, 256), (256, 16), (12, 16, 16), (200, 16))),
        ("mp,lpq,nq->lmn", ((200, 16), (12, 16, 16), (256, 16))),
        ("lab,lbc->lac", ((4, 2, 3), (4, 3, 5))),
        ("lp,lq->pq", ((40, 3), (40, 5))),
    ],
)
def test_common_products_are_matrix_products_and_copy_nothing(equation, shapes):
    contract, arrays = planned_and_drawn(equation, *shapes)
    with Recorder() as seen:
        result = contract(*(torch.from_numpy(x) for x in arrays))
    assert [name for name, _ in seen.fresh if name in ("mm", "bmm")] == [
        name for name, _ in seen.fresh if name != "_unsafe_view"
    ]
    assert {step.method for step in contract.steps} == {"matmul"}
    assert result.is_contiguous()


def orders(terms, output, sizes):
    """The largest result of every pairwise order."""
    if len(terms) == 1:
        yield 0
        return
    for i, j in itertools.combinations(range(len(terms)), 2):
        rest = [term for k, term in enumerate(terms) if k not in (i, j)]
        kept = set(output).union(*rest)
        term = "".join(sorted((set(terms[i]) | set(terms[j])) & kept))
        for largest in orders([*rest, term], output, sizes):
            yield max(largest, math.prod(sizes[letter] for letter in term))


@given(case=contractions(operands=(3, 4), ellipsis=False))
def test_a_memory_limit_is_met_exactly_where_an_order_meets_it(case):
    equation, arrays = case
    free = plan(equation, *shapes_of(arrays))
    terms, _, output = free.equation.partition("->")
    terms = terms.split(",")
    layouts = []
    for number, term in enumerate(terms):
        others = output + "".join(terms[:number] + terms[number + 1 :])
        layouts.append("".join(letter for letter in term if letter in others))
    sums = [step for step in free.steps if step.method == "sum"]
    least = max(min(orders(layouts, output, SIZES)), *(math.prod(s.shape) for s in sums), 0)
    limited = plan(equation, *shapes_of(arrays), memory_limit=max(least, 1))
    assert limited.largest <= max(least, 1)
    assert_is_the_contraction(limited(*arrays), equation, arrays)
    if least > 1:
        with pytest.raises(OptionError, match=f"memory_limit is {least - 1:,} entries"):
            plan(equation, *shapes_of(arrays), memory_limit=least - 1)


def test_a_memory_limit_buys_memory_with_flops():
    equation, shapes = "abc,bd,cd->a", ((5, 20, 30), (20, 3), (30, 3))
    free, limited = plan(equation, *shapes), plan(equation, *shapes, memory_limit=599)
    assert (free.largest, free.flops) == (600, 9600)
    assert (limited.largest, limited.flops) == (300, 18600)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_memory_limit_below_one_is_refused(limit):
    with pytest.raises(OptionError, match=f"at least 1 entry, or None; found {limit}"):
        plan("ab,bc->ac", (2, 3), (3, 4), memory_limit=limit)


def test_a_result_beyond_the_memory_limit_is_refused():
    with pytest.raises(OptionError, match=r"limit is 7 entries.*'ab,bc->ac'.*last has 8\)"):
        plan("ab,bc->ac", (2, 3), (3, 4), memory_limit=7)


# Plans


def test_a_plan_is_made_once():
    first = plan("ab,bc->ac", (2, 3), (3, 4))
    assert plan("ab,bc->ac", torch.Size([2, 3]), [np.int64(3), 4]) is first
    assert plan("ab,bc->ac", (2, 3), (3, 5)) is not first
    assert plan("ab,bc->ac", (2, 3), (3, 4), memory_limit=100) is not first


def test_running_a_plan_searches_nothing(monkeypatch):
    contract, arrays = planned_and_drawn("ab,bc,cd,de->ae", (2, 3), (3, 4), (4, 5), (5, 1))
    monkeypatch.delattr(opt_einsum, "contract_path")
    assert_is_the_contraction(contract(*arrays), "ab,bc,cd,de->ae", arrays)


def test_the_import_loads_neither_torch_nor_the_search():
    code = "import sys, lotr_tn.contraction; print({'torch', 'opt_einsum'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


TABLE = """\
contraction ...n,nq,lpq,mp->...lm
   0         an           (32, 4096)
   1         nq           (4096, 64)
   2         lpq          (12, 64, 64)
   3         mp           (4096, 64)
  t1  0, 1   an,nq->aq    (32, 64)         16.8 MFLOP  matmul
  t2  t1, 2  aq,lpq->alp  (32, 12, 64)      3.1 MFLOP  matmul
  t3  t2, 3  alp,mp->alm  (32, 12, 4096)  201.3 MFLOP  matmul
total 221.2 MFLOP; naive 105.6 TFLOP, 477,077 times as many
largest result 1,572,864 numbers"""


def test_a_plan_prints_as_a_table():
    shapes = ((32, 4096), (4096, 64), (12, 64, 64), (4096, 64))
    contract = plan("...n,nq,lpq,mp->...lm", *shapes)
    assert repr(contract) == contract.table() == TABLE
    assert max(map(len, TABLE.splitlines())) <= 80


@given(case=contractions())
def test_the_table_names_every_step_and_the_totals(case):
    equation, arrays = case
    contract = plan(equation, *shapes_of(arrays))
    *lines, total, largest = repr(contract).splitlines()
    assert len(lines) == 1 + len(arrays) + len(contract.steps)
    assert total.startswith("total ")
    assert " naive " in total
    assert largest == f"largest result {contract.largest:,} numbers"
    for step, line in zip(contract.steps, lines[1 + len(arrays) :], strict=True):
        assert line.endswith(step.method)
        assert step.equation in line
        assert str(step.shape) in line


def test_steps_say_what_is_carried_out():
    contract = plan("abc,cd->da", (2, 3, 4), (4, 5))
    methods = [(step.method, step.operands, step.equation, step.flops) for step in contract.steps]
    assert methods == [("sum", (0,), "abc->ac", 24), ("matmul", (1, 2), "cd,ac->da", 80)]
    assert contract.path == ((0, 1),)
    assert contract.naive_flops == 2 * 2 * 3 * 4 * 5
    assert plan("ab->ba", (2, 3)).flops == 0
    assert plan("ab->ab", (2, 3)).steps == ()
    assert plan("ab->ab", (2, 3)).largest == 6


# Refusals


@pytest.mark.parametrize(
    ("equation", "shapes", "message"),
    [
        ("ab,bc", ((2, 3), (3, 4)), "has no '->'"),
        ("ab,bc->ac", ((2, 3),), "has 2 operands; found 1 shapes"),
        ("ab,bc->ac", ((2, 3), (4, 5)), r"letter 'b' has size 3 in operand_0 \('ab'\) and size 4"),
        ("ab,bc->ac", ((2, 1), (4, 5)), r"size 4 in operand_1 \('bc'\); needed one size"),
        ("...a,...a->...", ((2, 4), (3, 4)), "has size 2 in operand_0 .* size 3 in operand_1"),
        ("abc,bc->ac", ((2, 3), (3, 4)), r"operand_0 .* 'abc', 3 letters; found shape \(2, 3\)"),
        ("ab,b->a", ((2, 3), (3, 4)), r"operand_1 .* 'b', 1 letters; found shape \(3, 4\)"),
        ("...ab->...", ((2,),), r"'...ab', 2 letters; found shape \(2,\)"),
        ("aab,b->a", ((2, 2, 3), (3,)), "operand_0 .* 'a' 2 times.*take the diagonal first"),
        ("ab,bc->aca", ((2, 3), (3, 4)), "the result .* 'a' 2 times"),
        ("ab,bc->az", ((2, 3), (3, 4)), "the result .* the letter 'z'; needed letters of"),
        ("a1,1c->ac", ((2, 3), (3, 4)), "operand_0 .* '1' 1 times; needed letters"),
        ("a..b,bc->ac", ((2, 3), (3, 4)), "operand_0 .* '.' 2 times"),
        ("a......->a", ((2, 3),), "operand_0 .* '.' 3 times"),
        ("ab->a->b", ((2, 3),), "the result .* '-' 1 times"),
        ("...a,a->a", ((2, 3), (3,)), "'...' in its operands only"),
        ("ab,b->...a", ((2, 3), (3,)), "'...' in its result only"),
        ("ab,bc->ac", (np.ones((2, 3)), (3, 4)), "pass x.shape, not x"),
        ("ab,bc->ac", (2, 3), "found int, int"),
    ],
)
def test_equations_that_do_not_fit_are_refused(equation, shapes, message):
    with pytest.raises(FormatError, match=message):
        plan(equation, *shapes)


def test_an_ellipsis_of_no_axes_needs_no_place_in_the_result():
    assert plan("...a,a->", (3,), (3,)).equation == "a,a->"


def product() -> ContractionPlan:
    return plan("ab,bc->ac", (2, 3), (3, 4))


def test_arrays_of_other_shapes_are_refused(backend):
    x, y = (on_backend(np.ones(shape), backend) for shape in ((2, 3), (4, 4)))
    with pytest.raises(FormatError, match=r"operand_1 has shape \(4, 4\); needed \(3, 4\)"):
        product()(x, y)


def test_another_number_of_arrays_is_refused():
    with pytest.raises(FormatError, match="'ab,bc->ac' needs 2 arrays; found 1"):
        product()(np.ones((2, 3)))
    with pytest.raises(FormatError, match="needs 2 arrays; found 0"):
        product()()


def test_mixed_arrays_are_refused():
    x = np.ones((2, 3))
    with pytest.raises(BackendError, match=r"operand_0: numpy.*operand_1: torch"):
        product()(x, torch.ones(3, 4, dtype=torch.float64))
    with pytest.raises(BackendError, match="operand_0: float64, operand_1: float32"):
        product()(x, np.ones((3, 4), np.float32))
    with pytest.raises(BackendError, match="operand_0: cpu, operand_1: meta"):
        product()(torch.ones(2, 3), torch.ones(3, 4, device="meta"))
    with pytest.raises(BackendError, match="operand_0 has dtype int64"):
        product()(np.ones((2, 3), int), np.ones((3, 4), int))
