"""Many adapters, each with each, against plain dense loops."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

import lotr_tn as lt
from lotr_tn.adapters import Adapter, Layout, LoRAGroup, LoRAModule, LoTRGroup, Target
from lotr_tn.errors import CheckpointError, OptionError
from lotr_tn.inspection import likeness as implementation
from lotr_tn.inspection.likeness import Likeness, compare_many, modules_of
from tests.conftest import real_data
from tests.inspection import test_analyze as real

ROOT = real_data()
needs_data = pytest.mark.skipif(ROOT is None, reason="real adapters not found: set LOTR_REAL_DATA")
SHAPES = {"a": (9, 7), "b": (9, 7), "c": (5, 8), "d": (4, 3)}


def lora(updates: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> lt.LoRAAdapter:
    """An adapter with these factors (up, down)."""
    modules = [
        LoRAModule(Target(name, Layout(), up.shape[1]), up, down)
        for name, (up, down) in updates.items()
    ]
    return lt.LoRAAdapter(tuple(modules), {}, {}, "")


def random_factors(rng: np.random.Generator, shape: tuple[int, int], rank: int, dtype="float64"):
    m, n = shape
    return (
        rng.standard_normal((m, rank)).astype(dtype),
        rng.standard_normal((rank, n)).astype(dtype),
    )


@st.composite
def families(draw: st.DrawFn) -> dict[str, lt.LoRAAdapter]:
    """Adapters that differ in modules and ranks; some modules are zero, some factors shared."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    shared = {name: random_factors(rng, shape, 2) for name, shape in SHAPES.items()}
    found = {}
    for index in range(draw(st.integers(2, 6))):
        updates = {}
        for name in draw(st.lists(st.sampled_from(sorted(SHAPES)), unique=True)):
            up, down = random_factors(rng, SHAPES[name], draw(st.integers(1, 5)))
            match draw(st.sampled_from(("own", "own", "zero", "same outputs", "one run"))):
                case "zero":
                    up = 0 * up
                case "same outputs":
                    up = shared[name][0]
                    down = rng.standard_normal((2, down.shape[1]))
                case "one run":
                    up, down = shared[name][0] + 0.1 * up[:, :1], shared[name][1]
            updates[name] = up, down
        found[f"adapter {index}"] = lora(updates)
    return found


def dense(adapter: Adapter) -> dict[str, np.ndarray]:
    """ΔW of every module."""
    if isinstance(adapter, lt.LoRAAdapter):
        return {m.target.name: m.scale * m.up.astype(float) @ m.down for m in adapter.modules}
    found = {}
    for group in adapter.groups.values():
        for target, layer in zip(group.targets, lt.to_dense(group.stack), strict=True):
            found[target.name] = np.asarray(layer, dtype=float)
    return found


def bases_of(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Orthonormal bases of its outputs and its inputs."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    kept = s > 1e-11 * s.max(initial=0.0)
    return {"out": u[:, kept], "in": vt[kept].T}


def truth(adapters: Mapping[str, Adapter]) -> dict[str, np.ndarray]:
    """All matrices by loops over dense updates and SciPy's angles."""
    updates = [dense(adapter) for adapter in adapters.values()]
    bases = [{k: bases_of(w) for k, w in update.items()} for update in updates]
    count = len(updates)
    found = {
        key: np.full((count, count), np.nan)
        for key in ("cosine", "overlap_out", "overlap_in", "chance_out", "chance_in")
    }
    found["norms"] = np.array(
        [np.sqrt(sum(np.sum(w**2) for w in update.values())) for update in updates]
    )
    found["common"] = np.zeros((count, count))
    for i, j in itertools.product(range(count), repeat=2):
        a, b = updates[i], updates[j]
        size = found["norms"][i] * found["norms"][j]
        if size:
            found["cosine"][i, j] = sum(np.sum(a[k] * b[k]) for k in {*a} & {*b}) / size
        common = [k for k in {*a} & {*b} if a[k].any() and b[k].any()]
        found["common"][i, j] = len(common)
        if not common:
            continue
        weights = np.array([np.linalg.norm(a[k]) * np.linalg.norm(b[k]) for k in common])
        for side in ("out", "in"):
            overlaps, chances = [], []
            for k in common:
                x, y = bases[i][k][side], bases[j][k][side]
                overlaps.append(np.mean(np.cos(subspace_angles(x, y)) ** 2))
                chances.append(max(x.shape[1], y.shape[1]) / len(x))
            found[f"overlap_{side}"][i, j] = weights @ overlaps / weights.sum()
            found[f"chance_{side}"][i, j] = weights @ chances / weights.sum()
    return found


def agree(found: Likeness, wanted: Mapping[str, np.ndarray], atol: float = 1e-12) -> None:
    for key, matrix in wanted.items():
        np.testing.assert_allclose(getattr(found, key), matrix, rtol=1e-10, atol=atol, err_msg=key)


def same(a: Likeness, b: Likeness, atol: float) -> None:
    agree(a, {key: getattr(b, key) for key in truth_keys()}, atol)


def truth_keys() -> tuple[str, ...]:
    matrices = ("cosine", "overlap_out", "overlap_in", "chance_out", "chance_in")
    return ("norms", "common", *matrices)


@given(adapters=families())
def test_everything_is_what_dense_loops_find(adapters):
    found = compare_many(adapters)
    agree(found, truth(adapters))
    assert found.names == tuple(adapters)
    assert set(found.modules) == {m.target.name for a in adapters.values() for m in a.modules}
    for key in truth_keys()[1:]:
        matrix = getattr(found, key)
        np.testing.assert_array_equal(matrix, matrix.T, err_msg=key)
    for matrix in (found.cosine, found.overlap_out, found.overlap_in):
        np.testing.assert_array_equal(np.diag(matrix), np.where(found.norms > 0, 1.0, np.nan))
    assert np.nanmax(np.abs(found.cosine), initial=0) <= 1


@given(adapters=families(), seed=st.integers(0, 99))
def test_only_the_updates_count(adapters, seed):
    """Another gauge, with factors of very different sizes, gives the same numbers."""
    rng = np.random.default_rng(seed)
    turned = {}
    for name, adapter in adapters.items():
        updates = {}
        for module in adapter.modules:
            turn = rng.standard_normal((module.target.rank,) * 2) + 3 * np.eye(module.target.rank)
            turn *= 10 ** rng.uniform(-4, 4)
            updates[module.target.name] = module.up @ turn, np.linalg.solve(turn, module.down)
        turned[name] = lora(updates)
    same(compare_many(turned), compare_many(adapters), 1e-9)


@given(adapters=families(), seed=st.integers(0, 99))
def test_angles_do_not_depend_on_sizes(adapters, seed):
    scales = 10 ** np.random.default_rng(seed).uniform(-6, 6, len(adapters))
    scaled = {
        name: lora({m.target.name: (scale * m.up, m.down) for m in adapter.modules})
        for scale, (name, adapter) in zip(scales, adapters.items(), strict=True)
    }
    one, other = compare_many(adapters), compare_many(scaled)
    np.testing.assert_allclose(other.norms, scales * one.norms, rtol=1e-12)
    for key in truth_keys()[2:]:
        np.testing.assert_allclose(getattr(one, key), getattr(other, key), atol=1e-12, err_msg=key)


def test_equal_and_opposite_adapters():
    rng = np.random.default_rng(0)
    shape = (40, 30)
    updates = {name: random_factors(rng, shape, 3, "float32") for name in "abc"}
    turn = rng.standard_normal((3, 3))
    again = {n: (up @ turn, np.linalg.solve(turn, down)) for n, (up, down) in updates.items()}
    opposite = {n: (-up, down) for n, (up, down) in updates.items()}
    found = compare_many({"one": lora(updates), "same": lora(updates), "not": lora(opposite)})
    wanted = np.array([[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
    np.testing.assert_allclose(found.cosine, wanted, rtol=0, atol=1e-12)
    assert found.groups(0.999) == ((0, 1), (2,))
    for matrix in (found.overlap_out, found.overlap_in):
        np.testing.assert_allclose(matrix, 1, rtol=0, atol=1e-12)
    assert compare_many({"a": lora(updates), "b": lora(again)}).cosine[0, 1] > 1 - 1e-6


def test_overlaps_are_those_of_the_layers_of_one_stack():
    """For one module: the definition of `subspace_overlaps`."""
    rng = np.random.default_rng(1)
    factors = [random_factors(rng, (13, 11), rank) for rank in (1, 3, 2, 4)]
    factors.append((factors[1][0], factors[2][1][[0, 1, 1]]))
    ups, downs = zip(*factors, strict=True)
    stack = lt.LoRAStack(
        np.concatenate(ups, axis=1), np.concatenate(downs), tuple(up.shape[1] for up in ups)
    )
    wanted = lt.analysis.subspace_overlaps(stack)
    found = compare_many({str(i): lora({"m": pair}) for i, pair in enumerate(factors)})
    np.testing.assert_allclose(found.overlap_out, wanted.left, atol=1e-12)
    np.testing.assert_allclose(found.overlap_in, wanted.right, atol=1e-12)


def test_chance_is_what_random_subspaces_have():
    rng = np.random.default_rng(2)
    ranks = [2, 6] * 20
    adapters = {
        str(i): lora({"m": random_factors(rng, (24, 16), rank)}) for i, rank in enumerate(ranks)
    }
    found = compare_many(adapters)
    pairs = np.triu(np.ones((40, 40), dtype=bool), 1)
    for overlap, chance, mean in (
        (found.overlap_out, found.chance_out, found.chance[0]),
        (found.overlap_in, found.chance_in, found.chance[1]),
    ):
        assert overlap[pairs].mean() == pytest.approx(chance[pairs].mean(), rel=0.03)
        assert mean == pytest.approx(chance[pairs].mean())
    assert found.chance_out[0, 2] == pytest.approx(2 / 24)
    assert found.chance_in[0, 1] == pytest.approx(6 / 16)


def lotr_adapter(stack, names=("a", "b")) -> lt.LoTRAdapter:
    targets = tuple(Target(name, Layout(), 3) for name in names)
    return lt.LoTRAdapter({"g": LoTRGroup("g", targets, stack)}, {}, "", {})


@pytest.mark.parametrize("ranks", [(3, 5), (5, 3), (0, 0)])
def test_every_format_is_read(ranks):
    rng = np.random.default_rng(3)
    up, down = rng.standard_normal((9, 5)), rng.standard_normal((5, 7))
    plain = lt.LoRAStack(up, down, (2, 3))
    core = rng.standard_normal((2, *ranks))
    tucker = lt.Tucker2(
        rng.standard_normal((9, ranks[0])), core, rng.standard_normal((7, ranks[1]))
    )
    modules = lora({"a": (up[:, :2], down[:2]), "c": random_factors(rng, (9, 7), 2)}).modules
    adapters = {
        "lora": lora({"a": (up[:, :2], down[:2]), "b": (up[:, 2:], down[2:])}),
        "truncated": lotr_adapter(plain),
        "tucker": lotr_adapter(tucker),
        "in": lotr_adapter(lt.convert(plain, lt.Tucker1, side="in")),
        "out": lotr_adapter(lt.convert(plain, lt.Tucker1, side="out")),
        "low rank": lotr_adapter(lt.low_rank_tucker2(plain, (4, 4), 3)),
        "kept": lt.LoTRAdapter({"g": LoRAGroup("g", modules)}, {}, "", {}),
    }
    found = compare_many(adapters)
    agree(found, truth(adapters), 1e-8)
    assert found.cosine[0, [1, 3, 4]] == pytest.approx(1, abs=1e-12)
    assert found.common[0].tolist() == [2, 2, 2 if ranks[0] else 0, 2, 2, 2, 1]


class Counted(Mapping[str, Adapter]):
    """Adapters that count how often they are looked up."""

    def __init__(self, adapters: Mapping[str, Adapter]) -> None:
        self.adapters, self.reads = adapters, dict.fromkeys(adapters, 0)

    def __getitem__(self, name: str) -> Adapter:
        self.reads[name] += 1
        return self.adapters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.adapters)

    def __len__(self) -> int:
        return len(self.adapters)


def test_adapters_are_looked_up_once_for_each_gib(monkeypatch):
    rng = np.random.default_rng(4)
    names = [f"m{i}" for i in range(6)]
    adapters = {
        str(i): lora({name: random_factors(rng, (9, 7), 2) for name in names}) for i in range(4)
    }
    counted, steps = Counted(adapters), []
    whole = compare_many(counted, progress=steps.append)
    assert set(counted.reads.values()) == {2}
    assert steps == names
    assert modules_of(adapters) == dict.fromkeys(names, (9, 7))
    a_module = 4 * (9 + 7) * 2 * 8
    for held, passes in ((2 * a_module, 3), (2 * a_module - 1, 6), (1, 6)):
        monkeypatch.setattr(implementation, "HELD_BYTES", held)
        counted = Counted(adapters)
        same(compare_many(counted), whole, 0.0)
        assert set(counted.reads.values()) == {1 + passes}


@given(adapters=families(), size=st.integers(1, 9))
def test_blocks_do_not_matter(adapters, size):
    whole = compare_many(adapters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(implementation, "BLOCK_RANK", size)
        same(compare_many(adapters), whole, 1e-13)


@given(adapters=families(), least=st.floats(0.01, 1))
def test_order_and_groups(adapters, least):
    found = compare_many(adapters)
    assert sorted(found.order) == list(range(len(adapters)))
    assert found.order.index(0) < found.order.index(len(adapters) - 1)
    groups = found.groups(least)
    assert list(itertools.chain(*groups)) == list(found.order)
    for group in groups:
        for pair in itertools.combinations(group, 2):
            assert found.cosine[pair] >= least - 1e-12
    for one, other in itertools.combinations(groups, 2):
        pairs = itertools.combinations((*one, *other), 2)
        below = [not found.cosine[pair] >= least - 1e-12 for pair in pairs]
        assert any(below), "two groups could be one"


def test_runs_come_side_by_side():
    """Checkpoints of three runs, given in turns, come out run by run and step by step."""
    rng = np.random.default_rng(5)
    adapters = {}
    ends = [random_factors(rng, (30, 20), 2) for _ in range(6)]
    for step in range(4):
        for run in range(3):
            (up, down), (later, beside) = ends[run], ends[run + 3]
            both = np.hstack([up, step * later / 2]), np.vstack([down, beside])
            adapters[f"run {run} step {step}"] = lora({"m": both})
    found = compare_many(adapters)
    names = [found.names[place] for place in found.order]
    stretches = [names[0:4], names[4:8], names[8:12]]
    for stretch in stretches:
        assert len({name[:5] for name in stretch}) == 1
        steps = [name[-1] for name in stretch]
        assert steps in (sorted(steps), sorted(steps, reverse=True))
    assert [{place % 3 for place in group} for group in found.groups(0.3)] == [
        {found.order[0] % 3}, {found.order[4] % 3}, {found.order[8] % 3},
    ]  # fmt: skip


def test_refusals():
    rng = np.random.default_rng(6)
    one = lora({"m": random_factors(rng, (9, 7), 2)})
    other = lora({"m": random_factors(rng, (7, 9), 2)})
    with pytest.raises(CheckpointError, match="at least two adapters; found 1"):
        compare_many({"one": one})
    with pytest.raises(CheckpointError, match="module m is 9x7 in one and 7x9 in other; needed"):
        compare_many({"one": one, "other": other})
    found = compare_many({"one": one, "two": one})
    for least in (0.0, -0.5, 1.01, float("nan")):
        with pytest.raises(OptionError, match="above 0 and at most 1"):
            found.groups(least)


def test_nothing_in_common():
    rng = np.random.default_rng(7)
    zero = np.zeros((9, 1)), np.zeros((1, 7))
    adapters = {
        "a": lora({"a": random_factors(rng, (9, 7), 2)}),
        "b": lora({"b": random_factors(rng, (9, 7), 2)}),
        "zero": lora({"a": zero}),
        "empty": lora({}),
    }
    found = compare_many(adapters)
    agree(found, truth(adapters))
    assert found.cosine[0, 1] == 0
    assert np.isnan(found.overlap_out[0, 1])
    assert np.isnan(found.cosine[2:]).all()
    assert np.isnan(found.chance).all()
    assert found.groups() == tuple((place,) for place in found.order)


def agree_in_part(adapters: Mapping[str, lt.LoRAAdapter]) -> None:
    """Two modules against dense loops, which take too long for all."""
    part = {name: replace(a, modules=a.modules[4:6]) for name, a in adapters.items()}
    agree(compare_many(part), truth(part), 1e-8)


@needs_data
def test_checkpoints_of_one_run():
    """The data's own description: cosines 0.58 (first against last) to 1.00."""
    assert ROOT is not None
    steps = (2000, 500, 8610, 5000)
    folder = ROOT / "roberta-pt-18ckpt"
    adapters = {str(step): lt.load_adapter(folder / f"checkpoint-{step}") for step in steps}
    found = compare_many(adapters)
    agree_in_part(adapters)
    place = {name: index for index, name in enumerate(found.names)}
    assert found.cosine[place["500"], place["8610"]] == pytest.approx(0.58, abs=0.005)
    assert [found.names[i] for i in found.order] == ["500", "2000", "5000", "8610"]
    assert found.chance == pytest.approx((8 / 768, 8 / 768))
    assert found.overlap_in[~np.eye(4, dtype=bool)].min() > 0.9
    for i, j in ((0, 1), (3, 2)):
        wanted = lt.compare_adapters(adapters[str(steps[i])], adapters[str(steps[j])]).cosine
        assert found.cosine[i, j] == pytest.approx(wanted, abs=1e-12)


@needs_data
def test_runs_of_mixed_ranks(tmp_path):
    names = ("rank2_head", "rank4_head", "rank4_hist1", "rank6_head", "rank16_head")
    adapters = {name: real.sam_adapter(name, tmp_path) for name in names}
    folder = real.sam_folder("zeroB_rank4_untrained", tmp_path / "zero")
    adapters["untrained"] = lt.load_adapter(folder)
    found = compare_many(adapters)
    agree_in_part(adapters)
    off = found.cosine[:5, :5][~np.eye(5, dtype=bool)]
    assert 0.1 < off.min() < off.max() < 0.5, "separate runs"
    assert found.norms[5] == 0
    assert np.isnan(found.cosine[5]).all()
    assert found.chance_out[0, 4] == pytest.approx(16 / 768)
