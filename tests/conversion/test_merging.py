"""Merged adapters: the dense sum, what PEFT makes of them, and what may not be merged."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig

import lotr_tn as lt
from lotr_tn.adapters import Layout, LoRAModule, LoTRGroup, Target
from lotr_tn.adapters.raw_tensor import RawTensor
from lotr_tn.conversion import merging_modules
from lotr_tn.doors.sources import named_adapters
from lotr_tn.formats.certificate import Certificate
from tests.conftest import real_data
from tests.conversion.test_real_adapters import deltas
from tests.files import peft_models as pm

SHAPES = {"q": (12, 9), "v": (7, 9)}
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "tiny"}


def adapter(
    seed=0, *, kinds=("q", "v"), layers=3, rank=4, dtype=np.float32, extras=None, shapes=SHAPES
):
    """A LoRA of random factors with a scale of its own."""
    rng = np.random.default_rng(seed)
    modules = []
    for layer in range(layers):
        for kind in kinds:
            m, n = shapes[kind]
            up, down = rng.standard_normal((m, rank)), rng.standard_normal((rank, n))
            target = Target(f"model.layers.{layer}.{kind}", Layout(), rank)
            modules.append(LoRAModule(target, up.astype(dtype), down.astype(dtype), 0.7))
    text = json.dumps(CONFIG | {"r": rank})
    return lt.LoRAAdapter(tuple(modules), extras or {}, json.loads(text), text)


def dense(adapter):
    """ΔW of every module in float64, by plain products."""
    if isinstance(adapter, lt.LoRAAdapter):
        return {m.target.name: module_delta(m) for m in adapter.modules}
    found = {}
    for group in adapter.groups.values():
        layers = lt.to_dense(lt.astype(group.stack, "float64"))
        found |= {t.name: w for t, w in zip(group.targets, layers, strict=True)}
    return found


def module_delta(module):
    up, down = module.up.astype(np.float64), module.down.astype(np.float64)
    groups = module.target.layout.groups
    if groups == 1:
        return module.scale * up @ down
    rows, width = len(up) // groups, len(down) // groups
    parts = [
        up[g * rows : (g + 1) * rows] @ down[g * width : (g + 1) * width] for g in range(groups)
    ]
    return module.scale * np.concatenate(parts)


def dense_sum(adapters, weights):
    total = {}
    for name, one in adapters.items():
        for path, w in dense(one).items():
            total[path] = total.get(path, 0.0) + weights.get(name, 0.0) * w
    return total


def gap(found, wanted):
    """Relative distance of two adapters given as dense modules."""
    assert set(found) == set(wanted)
    lost = sum(np.linalg.norm(found[k] - wanted[k]) ** 2 for k in wanted)
    return (lost / sum(np.linalg.norm(w) ** 2 for w in wanted.values())) ** 0.5


def lotr(adapter, format="lotr", error=0.2):
    return lt.convert_adapter(adapter, lt.RelativeError(error), format=format).adapter


def banked(count=3, form="lotr", dtype=np.float32, seed=5):
    """LoTR adapters whose groups share the very same factors, as one bank gives them."""
    rng = np.random.default_rng(seed)
    shared = {
        k: (rng.standard_normal((m, 5)), rng.standard_normal((n, 6)))
        for k, (m, n) in SHAPES.items()
    }
    shared = {k: tuple(x.astype(dtype) for x in pair) for k, pair in shared.items()}
    found = {}
    for name in "abcdefg"[:count]:
        groups = {}
        for kind, (u, v) in shared.items():
            targets = tuple(Target(f"model.layers.{i}.{kind}", Layout(), 4) for i in range(3))

            def draw(*shape):
                return rng.standard_normal(shape).astype(dtype)

            match form:
                case "lotr":
                    stack = lt.Tucker2(u, draw(3, 5, 6), v)
                case "lotr-low-rank":
                    stack = lt.LowRankTucker2(u, draw(5, 6), draw(6, 6), v, (1, 3, 2))
                case "shared-in":
                    stack = lt.Tucker1(v, draw(3, u.shape[0], 6), "in")
                case _:
                    stack = lt.Tucker1(u, draw(3, v.shape[0], 5), "out")
            groups[kind] = LoTRGroup(kind, targets, stack)
        found[name] = lt.LoTRAdapter(groups, {}, json.dumps(CONFIG), {"dtype": "float32"})
    return found


def own_copies(adapter):
    """The same adapter with factors of its own."""
    groups = {}
    for name, group in adapter.groups.items():
        fields = {k: np.array(x) for k, x in lt.ops.arrays.arrays_of(group.stack).items()}
        groups[name] = LoTRGroup(
            name, group.targets, lt.ops.arrays.with_arrays(group.stack, **fields)
        )
    return lt.LoTRAdapter(groups, adapter.extras, adapter.config_text, adapter.origin)


def test_linear_is_the_dense_sum_of_mixed_files():
    rich = adapter(1, rank=6)
    adapters = {
        "a": adapter(0),
        "b": lotr(rich),
        "c": lotr(adapter(2, rank=3), "lotr-low-rank"),
        "d": lotr(adapter(3), "shared-in"),
        "e": lotr(adapter(4), "truncated"),
        "f": lotr(adapter(5, kinds=("v",)), "auto"),
    }
    weights = {"a": 0.3, "b": -1.2, "c": 1.0, "d": 0.5, "e": -0.25, "f": 2.0}
    merged = lt.merge_adapters(adapters, weights)
    wanted = dense_sum(adapters, weights)
    assert gap(dense(merged.adapter), wanted) < 1e-7
    assert merged.relative_error < 1e-7
    assert abs(merged.norm / math.hypot(*map(np.linalg.norm, wanted.values())) - 1) < 1e-6
    for module in merged.modules:
        assert module.exact_rank == np.linalg.matrix_rank(wanted[module.name])
        assert abs(module.norm / np.linalg.norm(wanted[module.name]) - 1) < 1e-6


@given(st.data())
def test_linear_is_the_dense_sum(data):
    count = data.draw(st.integers(1, 3))
    adapters = {
        f"x{i}": adapter(
            data.draw(st.integers(0, 50)),
            rank=data.draw(st.integers(1, 5)),
            layers=data.draw(st.integers(1, 2)),
            dtype=data.draw(st.sampled_from([np.float32, np.float64])),
        )
        for i in range(count)
    }
    weights = {name: data.draw(st.sampled_from([-2.0, -0.3, 0.7, 1.0])) for name in adapters}
    merged = lt.merge_adapters(adapters, weights)
    wanted = dense_sum(adapters, weights)
    size = sum(np.linalg.norm(w) for x in adapters.values() for w in dense(x).values())
    lost = [np.linalg.norm(w - wanted[k]) for k, w in dense(merged.adapter).items()]
    assert max(lost) <= 1e-7 * size


def test_a_module_that_an_adapter_lacks_is_no_update_there():
    shapes = SHAPES | {"o": (9, 12)}
    kinds = {"a": ("q", "o"), "b": ("o", "v")}
    adapters = {name: adapter(i, kinds=kinds[name], shapes=shapes) for i, name in enumerate("ab")}
    merged = lt.merge_adapters(adapters, {"a": 2.0, "b": -1.0})
    assert [m.name for m in merged.modules][4:7] == [
        "model.layers.2.q", "model.layers.2.o", "model.layers.0.v",
    ]  # fmt: skip
    assert gap(dense(merged.adapter), dense_sum(adapters, {"a": 2.0, "b": -1.0})) < 1e-7
    assert set(merged.adapter.config["target_modules"]) == {m.name for m in merged.modules}


def test_the_default_is_the_mean_and_only_weighed_adapters_are_read():
    adapters = {"a": adapter(0), "b": adapter(1)}
    merged = lt.merge_adapters(adapters)
    assert merged.weights == {"a": 0.5, "b": 0.5}
    assert lt.merge_adapters(adapters, method="ties").weights == {"a": 1.0, "b": 1.0}

    class OnlyA(dict):
        def __getitem__(self, name):
            assert name == "a", "an adapter of weight 0 was read"
            return super().__getitem__(name)

    merged = lt.merge_adapters(OnlyA(adapters), {"a": 0.3, "b": 0.0})
    assert merged.weights == {"a": 0.3}
    assert gap(dense(merged.adapter), dense_sum(adapters, {"a": 0.3})) < 1e-7


@pytest.mark.parametrize("form", ["lotr", "lotr-low-rank", "shared-in", "shared-out"])
@pytest.mark.parametrize("method", ["linear", "ties", "dare", "dare-ties", "slerp"])
def test_shared_factors_give_what_copies_give(form, method):
    adapters = banked(2, form)
    copies = {name: own_copies(x) for name, x in adapters.items()}
    options = {"method": method, "density": 0.6, "seed": 3}
    weights = {"a": 0.6, "b": 0.9}
    one, two = (lt.merge_adapters(x, weights, **options) for x in (adapters, copies))
    assert gap(dense(one.adapter), dense(two.adapter)) < 2e-7
    assert [m.exact_rank for m in one.modules] == [m.exact_rank for m in two.modules]
    if method == "linear":
        assert gap(dense(one.adapter), dense_sum(adapters, weights)) < 1e-7


def test_shared_factors_are_taken_once(monkeypatch):
    seen = []
    true_qr = merging_modules.qr
    monkeypatch.setattr(
        merging_modules, "qr", lambda x, xp: seen.append(x.shape) or true_qr(x, xp=xp)
    )
    adapters = banked(3)
    lt.merge_adapters(adapters)
    assert sorted(seen) == [(7, 5), (9, 6), (9, 6), (12, 5)], "once for each group, not module"
    seen.clear()
    mixed = adapters | {"z": adapter(1)}
    merged = lt.merge_adapters(mixed, dict.fromkeys(mixed, 1.0))
    assert set(seen) == {(12, 9), (9, 10), (7, 9)}, "5 or 6 columns for the three, 4 for the one"
    assert gap(dense(merged.adapter), dense_sum(mixed, dict.fromkeys(mixed, 1.0))) < 1e-7


def test_factors_that_are_products_are_never_taken_for_others(monkeypatch):
    """A product that was freed leaves its place in memory to the next module's."""
    true_layer = merging_modules.between_shared

    def made_anew(stack, index, *, xp):
        layer = true_layer(stack, index, xp=xp)
        return replace(layer, left=layer.left * 1, right=layer.right * 1)

    monkeypatch.setattr(merging_modules, "between_shared", made_anew)
    rng = np.random.default_rng(0)
    stack = lt.Tucker1(rng.standard_normal((300, 4)), rng.standard_normal((12, 500, 4)), "in")
    targets = tuple(Target(f"layers.{i}.q", Layout(), 4) for i in range(12))
    groups = {"q": LoTRGroup("q", targets, stack)}
    one = lt.LoTRAdapter(groups, {}, json.dumps(CONFIG), {"format": "peft-lora"})
    merged = lt.merge_adapters({"a": one}, {"a": 1.0})
    assert gap(dense(merged.adapter), dense(one)) < 1e-7


def test_a_basis_outlives_no_factor():
    """The array whose basis is kept is kept too, so nothing else can come to lie where it lay."""
    bases, rng = merging_modules.Bases(), np.random.default_rng(0)
    for _ in range(20):
        factor = rng.standard_normal((200, 3))
        (basis, inside), _ = bases.of("left", [factor])
        assert np.allclose(basis @ inside, factor)
        del factor


@pytest.mark.parametrize("method", ["ties", "dare", "dare-ties"])
def test_methods_are_those_of_each_module_alone(method):
    """With one module the adapter's merging is the stack's, but for the draw."""
    adapters = {"a": adapter(0, rank=3), "b": adapter(1, rank=5), "c": adapter(2, rank=2)}
    weights = {"a": 1.0, "b": -0.7, "c": 0.4}
    merged = lt.merge_adapters(adapters, weights, method=method, density=0.5, seed=2)
    found = dense(merged.adapter)
    for index, module in enumerate(adapters["a"].modules):
        stack = lt.concat_layers(
            [
                lt.LoRAStack(m.scale * m.up.astype(float), m.down.astype(float), (m.up.shape[1],))
                for m in (x.modules[index] for x in adapters.values())
            ]
        )
        if method == "ties":
            alone = lt.merge(stack, tuple(weights.values()), method=method, density=0.5)
            wanted = lt.to_dense(alone)[0]
            assert gap({"": found[module.target.name]}, {"": wanted}) < 1e-6
        else:
            linear = lt.to_dense(lt.merge(stack, tuple(weights.values())))[0]
            assert gap({"": found[module.target.name]}, {"": linear}) > 0.1


def test_draws_belong_to_seed_and_path_alone():
    adapters = {"a": adapter(0), "b": adapter(1)}
    backwards = {
        name: lt.LoRAAdapter(x.modules[::-1], {}, x.config, x.config_text)
        for name, x in adapters.items()
    }
    options = {"method": "dare", "density": 0.4}
    wanted = dense(lt.merge_adapters(adapters, **options, seed=1).adapter)
    assert gap(dense(lt.merge_adapters(backwards, **options, seed=1).adapter), wanted) < 1e-6
    assert gap(dense(lt.merge_adapters(adapters, **options, seed=2).adapter), wanted) > 0.1
    only = adapters["a"].modules[1]
    assert only.target.name.endswith("0.v")
    alone = {
        name: lt.LoRAAdapter(x.modules[1:2], {}, x.config, x.config_text)
        for name, x in adapters.items()
    }
    name = only.target.name
    found = dense(lt.merge_adapters(alone, **options, seed=1).adapter)
    assert gap(found, {name: wanted[name]}) < 1e-6
    twin = LoRAModule(Target("other.path", Layout(), 4), only.up, only.down, only.scale)
    twins = lt.LoRAAdapter((only, twin), {}, CONFIG, json.dumps(CONFIG))
    one, two = dense(lt.merge_adapters({"t": twins}, **options, seed=1).adapter).values()
    assert gap({"": one}, {"": two}) > 0.1, "one update under two paths is drawn for twice"


def test_slerp_takes_the_angle_over_all_modules():
    adapters = {"a": adapter(0), "b": adapter(1, kinds=("q",))}
    weights = {"a": 3.0, "b": 1.0}
    merged = lt.merge_adapters(adapters, weights, method="slerp")
    a, b = (dense(x) for x in adapters.values())
    norms = [math.hypot(*(np.linalg.norm(w) for w in x.values())) for x in (a, b)]
    angle = math.acos(sum(np.vdot(a[k], b[k]) for k in b) / norms[0] / norms[1])
    wanted = {"a": math.sin(0.75 * angle), "b": math.sin(0.25 * angle)}
    wanted = {k: value / math.sin(angle) for k, value in wanted.items()}
    assert merged.coefficients == pytest.approx(wanted, rel=1e-7)
    assert merged.weights == weights
    assert gap(dense(merged.adapter), dense_sum(adapters, wanted)) < 1e-6


def test_rank_and_error_are_kept_to():
    adapters = {"a": adapter(0, rank=4), "b": adapter(1, rank=3)}
    wanted = dense_sum(adapters, {"a": 0.5, "b": 0.5})
    spectra = [np.linalg.svd(w, compute_uv=False) for w in wanted.values()]
    size = sum(np.sum(s**2) for s in spectra)
    for rank in (1, 3, 6, 99):
        merged = lt.merge_adapters(adapters, rank=rank)
        best = (sum(np.sum(s[rank:] ** 2) for s in spectra) / size) ** 0.5
        assert merged.relative_error == pytest.approx(best, rel=1e-5, abs=1e-7)
        assert gap(dense(merged.adapter), wanted) == pytest.approx(merged.relative_error, abs=2e-7)
        assert merged.adapter.config["r"] == min(rank, 7)
    for error in (0.5, 0.2, 0.05):
        merged = lt.merge_adapters(adapters, rule=lt.RelativeError(error))
        rank = merged.adapter.config["r"]
        assert merged.met
        assert merged.relative_error <= error
        fewer = (sum(np.sum(s[rank - 1 :] ** 2) for s in spectra) / size) ** 0.5
        assert fewer > error, "one rank less would not do"
    assert lt.merge_adapters(adapters, rule=lt.RelativeError(0.0)).met


def test_an_error_just_above_a_tail_leaves_room_for_rounding():
    adapters = {"a": adapter(0, rank=4)}
    tail = lt.merge_adapters(adapters, rank=2, dtype="float64").relative_error
    coarse = lt.merge_adapters(adapters, rule=lt.RelativeError(tail * (1 + 1e-9)), dtype="bfloat16")
    assert coarse.relative_error <= tail
    assert coarse.adapter.config["r"] == 3
    fine = lt.merge_adapters(adapters, rule=lt.RelativeError(tail * (1 + 1e-9)), dtype="float64")
    assert fine.adapter.config["r"] == 2
    missed = lt.merge_adapters(adapters, rule=lt.RelativeError(1e-4), dtype="bfloat16")
    assert not missed.met
    assert missed.relative_error > 1e-4


@pytest.mark.parametrize(
    ("stored", "options", "wanted"),
    [
        ("float32", {}, "float32"),
        ("float16", {}, "float32"),
        ("float64", {}, "float64"),
        ("float16", {"rule": lt.RelativeError(0.2)}, "float16"),
        ("float16", {"rule": lt.RelativeError(1e-3)}, "float32"),
        ("float16", {"rank": 2}, "float32"),
        ("float32", {"dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_storage(stored, options, wanted):
    adapters = {"a": adapter(0, dtype=stored), "b": adapter(1, dtype=stored)}
    merged = lt.merge_adapters(adapters, **options)
    assert merged.dtype == wanted
    assert {m.up.dtype.name for m in merged.adapter.modules} == {wanted}
    found = gap(dense(merged.adapter), dense_sum(adapters, {"a": 0.5, "b": 0.5}))
    assert found == pytest.approx(merged.relative_error, rel=1e-6, abs=1e-15)


def test_float16_is_left_where_it_would_lose_digits():
    tiny = adapter(0, dtype=np.float16)
    merged = lt.merge_adapters({"a": tiny}, {"a": 1e-11}, rule=lt.RelativeError(0.2))
    assert merged.dtype == "float32"
    assert merged.met


def test_equal_adapters_cancel():
    a = adapter(0)
    merged = lt.merge_adapters({"a": a, "b": adapter(0)}, {"a": 1, "b": -1})
    assert merged.norm < 1e-13
    assert merged.relative_error == 0
    assert {m.exact_rank for m in merged.modules} == {0}
    assert merged.adapter.config["r"] == 1
    assert not any(w.any() for w in dense(merged.adapter).values())
    assert lt.merge_adapters(
        {"a": a, "b": adapter(0)}, {"a": 1, "b": -1}, rule=lt.RelativeError(0.1)
    ).met


def head(value, key="base_model.model.score.weight"):
    return {key: RawTensor.of(np.full((2, 9), value, dtype=np.float32))}


def test_extras():
    a, b, c = adapter(0, extras=head(1.0)), adapter(1, extras=head(1.0)), adapter(2)
    changed = adapter(3, extras=head(2.0))
    assert list(lt.merge_adapters({"a": a, "b": b}).adapter.extras) == list(head(1.0))
    for other in (c, changed):
        with pytest.raises(
            lt.errors.CheckpointError, match=r"a and x differ in base_model\.model\.sc"
        ):
            lt.merge_adapters({"a": a, "x": other})
    with pytest.raises(lt.errors.CheckpointError, match="c and a differ"):
        lt.merge_adapters({"c": c, "a": a})
    kept = lt.merge_adapters({"a": a, "x": changed}, extras_from="x").adapter.extras
    assert kept == changed.extras
    bare = lt.merge_adapters({"a": a, "x": changed}, extras_from="none").adapter
    assert not bare.extras
    assert bare.config["modules_to_save"] is None
    assert bare.config["bias"] == "none"
    assert lt.merge_adapters({"a": a, "x": changed}, {"a": 1.0}).adapter.extras == a.extras
    with pytest.raises(lt.errors.OptionError, match="no adapter 'y' to keep other tensors of"):
        lt.merge_adapters({"a": a, "x": changed}, extras_from="y")


def test_the_form_is_portable(tmp_path):
    a = adapter(0)
    config = a.config | {
        "use_rslora": True,
        "rank_pattern": {"q": 4},
        "target_modules": "all-linear",
    }
    a = lt.LoRAAdapter(a.modules, {}, config, json.dumps(config))
    merged = lt.merge_adapters({"a": a, "b": adapter(1, kinds=("v",))})
    config = merged.adapter.config
    assert config["r"] == config["lora_alpha"] == 7, "4 + 4 in v, which has 7 rows"
    assert not config["use_rslora"]
    assert not config["rank_pattern"]
    assert config["base_model_name_or_path"] == "tiny"
    assert {m.target.rank for m in merged.adapter.modules} == {7}
    lt.save_adapter(merged.adapter, tmp_path / "merged")
    again = lt.load_adapter(tmp_path / "merged")
    assert gap(dense(again), dense(merged.adapter)) == 0


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ({"a": 1, "z": 1}, {}, "no adapter 'z' to weigh; there are a, b"),
        ({"a": 0, "b": 0}, {}, "all weights are zero"),
        ({"a": math.nan}, {}, "must be finite numbers"),
        (None, {"method": "mean"}, "method must be one of"),
        (None, {"density": 2}, "density must be"),
        (None, {"seed": -1}, "seed must be"),
        (None, {"rank": 0}, "rank must be a whole number of at least 1"),
        (None, {"rule": 0.05}, "rule must be a RelativeError"),
        (None, {"rule": lt.RelativeError(0.1), "rank": 2}, "a rank or an error, and not both"),
        (None, {"dtype": "int8"}, "dtype must be auto or one of"),
        ({"a": 1}, {"method": "slerp"}, "two weights of at least 0|no shortest"),
        ({"a": 1, "b": -1}, {"method": "slerp"}, "two weights of at least 0"),
    ],
)
def test_options_that_make_no_sense(weights, options, message):
    adapters = {"a": adapter(0), "b": adapter(1)}
    if options == {"method": "slerp"} and weights == {"a": 1}:
        assert lt.merge_adapters(adapters, weights, **options).coefficients["a"] == 1.0
        return
    with pytest.raises(lt.errors.OptionError, match=message):
        lt.merge_adapters(adapters, weights, **options)


def test_slerp_of_three_is_refused():
    with pytest.raises(lt.errors.OptionError, match="takes two; found 3"):
        lt.merge_adapters({c: adapter(i) for i, c in enumerate("abc")}, method="slerp")
    with pytest.raises(lt.errors.OptionError, match="no adapter to merge"):
        lt.merge_adapters({})


def test_adapters_of_two_bases_are_refused_by_name():
    a, b = adapter(0), adapter(1)
    a, b = (
        replace(one, config={**one.config, "base_model_name_or_path": base})
        for one, base in ((a, "hub/small"), (b, "large"))
    )
    with pytest.raises(lt.errors.CheckpointError, match=r"two belongs to the base large and one"):
        lt.merge_adapters({"one": a, "two": b})
    assert lt.merge_adapters({"one": a, "two": b}, any_base=True).relative_error < 1e-6
    same = replace(b, config={**b.config, "base_model_name_or_path": "/models/Small/"})
    lt.merge_adapters({"one": a, "two": same})


def test_modules_that_differ_are_refused_by_name():
    other = adapter(1, shapes={"q": (12, 9), "v": (7, 8)})
    with pytest.raises(
        lt.errors.CheckpointError, match=r"layers\.0\.v is a linear 7x9 in a and a linear 7x8 in b"
    ):
        lt.merge_adapters({"a": adapter(0), "b": other})
    a = adapter(0)
    embedded = tuple(
        LoRAModule(Target(m.target.name, Layout("embedding"), 4), m.up, m.down) for m in a.modules
    )
    other = lt.LoRAAdapter(embedded, {}, a.config, a.config_text)
    with pytest.raises(lt.errors.CheckpointError, match="a linear 12x9 in a and a embedding 12x9"):
        lt.merge_adapters({"a": a, "b": other})


def two_of_peft(build, folder, targets, ranks=(3, 5), **more):
    """One model with the adapters one and two, saved apart."""
    model = pm.quiet_peft(
        pm.seeded(build),
        LoraConfig(r=ranks[0], lora_alpha=6, target_modules=targets, **more),
        adapter_name="one",
    )
    model.add_adapter("two", LoraConfig(r=ranks[1], lora_alpha=4, target_modules=targets, **more))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    model.save_pretrained(folder)
    return model, {name: lt.load_adapter(folder / name) for name in ("one", "two")}


def peft_deltas(model, name):
    layers = {k: m for k, m in model.base_model.model.named_modules() if hasattr(m, "lora_A")}
    return {
        k: m.get_delta_weight(name).double().numpy() for k, m in layers.items() if name in m.scaling
    }


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, -1.0)])
def test_linear_is_pefts_cat_and_not_its_linear(weights, tmp_path):
    targets = ["q_proj", "down_proj"]
    model, adapters = two_of_peft(pm.llama, tmp_path, targets, ranks=(4, 4))
    merged = lt.merge_adapters(adapters, dict(zip(("one", "two"), weights, strict=True)))
    found = dense(merged.adapter)
    for kind in ("cat", "linear"):
        model.add_weighted_adapter(["one", "two"], list(weights), kind, combination_type=kind)
    assert gap(found, peft_deltas(model, "cat")) < 1e-6
    far = gap(peft_deltas(model, "linear"), peft_deltas(model, "cat"))
    assert far > 0.7, "PEFT's linear adds products of one adapter's A with the other's B"


def test_peft_computes_what_was_merged(tmp_path):
    targets = ["q_proj", "v_proj", "down_proj"]
    model, adapters = two_of_peft(pm.llama, tmp_path, targets)
    merged = lt.merge_adapters(adapters, {"one": 0.4, "two": -1.5})
    lt.save_adapter(merged.adapter, tmp_path / "merged")
    model.add_weighted_adapter(["one", "two"], [0.4, -1.5], "cat", combination_type="cat")
    model.set_adapter("cat")
    assert torch.allclose(
        pm.logits(pm.reload(pm.llama, tmp_path / "merged")), pm.logits(model), atol=1e-5
    )


@pytest.mark.filterwarnings("ignore:.*ConvNd layer with groups:UserWarning")
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_every_layout_is_merged(method, tmp_path):
    targets = ["embed", "one", "two", "grouped", "three", "point"]
    for name, rank, seed in (("one", 2, 1.0), ("two", 4, 0.6)):
        pm.adapt(
            pm.Convs, tmp_path / name, grown=seed, r=rank, lora_alpha=4, target_modules=targets
        )
    adapters = {name: lt.load_adapter(tmp_path / name) for name in ("one", "two")}
    weights = {"one": 0.8, "two": -0.5}
    merged = lt.merge_adapters(adapters, weights, method=method)
    lt.save_adapter(merged.adapter, tmp_path / "merged")
    again = lt.load_adapter(tmp_path / "merged")
    if method == "linear":
        assert gap(dense(again), dense_sum(adapters, weights)) < 1e-6
    model = pm.reload(pm.Convs, tmp_path / "merged")
    for path, w in dense(again).items():
        layer = model.base_model.model.get_submodule(path)
        if path == "grouped":  # PEFT computes with it, and has no delta of it
            x = torch.randn(1, 6, 5, 5, generator=torch.Generator().manual_seed(0))
            kernel = torch.from_numpy(w).float().reshape(10, 6, 3, 3)
            theirs = (layer(x) - layer.base_layer(x)).detach()
            ours = torch.nn.functional.conv2d(x, kernel, padding=1)
            assert torch.allclose(theirs, ours, atol=1e-5)
            continue
        theirs = layer.get_delta_weight("default").double().numpy()
        if layer.__class__.__name__ == "Embedding":
            theirs = theirs.T
        assert np.allclose(theirs.reshape(w.shape), w, atol=1e-6)


def test_a_native_file_may_keep_modules_as_they_are():
    a = adapter(0)
    mixed = lt.convert_adapter(a, lt.RelativeError(0.3), keep=r"\.q$").adapter
    assert any(isinstance(g.certificate, Certificate) for g in mixed.groups.values())
    adapters = {"a": a, "m": mixed}
    merged = lt.merge_adapters(adapters, {"a": 1, "m": -1})
    found, wanted = dense(merged.adapter), dense_sum(adapters, {"a": 1, "m": -1})
    for path in wanted:
        assert np.linalg.norm(found[path] - wanted[path]) < 1e-6
    zero = {m.name for m in merged.modules if m.exact_rank == 0}
    assert zero == {f"model.layers.{i}.q" for i in range(3)}


def test_progress_names_each_module():
    seen = []
    merged = lt.merge_adapters({"a": adapter(0)}, progress=seen.append)
    assert seen == [m.name for m in merged.modules]


def test_names_of_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("x/lora", "y/lora", "z"):
        lt.save_adapter(adapter(0), make(tmp_path / folder))
    lt.save_adapter(lotr(adapter(0)), tmp_path / "w.lotr.safetensors")
    from pathlib import Path

    typed = ["x/lora", "y/lora", "z", "w.lotr.safetensors", "z/adapter_model.safetensors"]
    found = named_adapters([Path(p) for p in typed])
    assert list(found) == ["x/lora", "y/lora", "z", "w", "adapter_model"]
    assert found["w"] is found["w"]
    assert isinstance(found["w"], lt.LoTRAdapter)
    assert list(named_adapters([Path("x/lora"), Path("z")])) == ["lora", "z"]
    with pytest.raises(lt.errors.CheckpointError, match="z is named twice"):
        named_adapters([Path("z"), Path("z")])
    absent = named_adapters([Path("z"), Path("nowhere")])
    with pytest.raises(lt.errors.CheckpointError, match="nowhere: no such file"):
        absent["nowhere"]


def make(folder):
    folder.parent.mkdir(exist_ok=True)
    return folder


@pytest.mark.skipif(real_data() is None, reason="real adapters not found: set LOTR_REAL_DATA")
def test_differences_of_real_checkpoints(data, tmp_path):
    folder = data / "roberta-pt-18ckpt"
    adapters = named_adapters([folder / "checkpoint-500", folder / "checkpoint-8610"])
    a, b = adapters
    with pytest.raises(lt.errors.CheckpointError, match=r"differ in .*classifier"):
        lt.merge_adapters(adapters, {a: -1, b: 1})
    merged = lt.merge_adapters(adapters, {a: -1, b: 1}, extras_from=b)
    lt.save_adapter(merged.adapter, tmp_path / "difference")
    before, after = deltas(folder / a), deltas(folder / b)
    wanted = {k: after[k] - before[k] for k in after}
    assert gap(deltas(tmp_path / "difference"), wanted) < 1e-7
    assert merged.relative_error < 1e-7
    assert merged.adapter.config["r"] == 16

    grown = lt.merge_adapters(
        {"old": adapters[a], "step": lt.load_adapter(tmp_path / "difference")},
        {"old": 1, "step": 1},
        extras_from="step",
    )
    assert grown.adapter.config["r"] == 8, "old + (new - old) has the rank of new again"
    assert gap({f"base_model.model.{k}": w for k, w in dense(grown.adapter).items()}, after) < 1e-6
