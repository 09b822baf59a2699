"""Files whose groups are stored in different formats: written, read, exported, loaded by PEFT."""

import json
import math
import warnings
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import lotr_tn as lt
from lotr_tn.adapters.adapter import LoRAAdapter, LoRAGroup
from lotr_tn.adapters.storage import format_of
from lotr_tn.errors import CheckpointError, OptionError
from lotr_tn.files.dialects.native import METADATA_KEY
from lotr_tn.formats import Certificate
from lotr_tn.testing import laws
from tests.files import peft_models as pm

LLAMA = {"r": 4, "lora_alpha": 5, "target_modules": "all-linear"}  # scale 1.25
CONVS = {"r": 4, "lora_alpha": 3, "target_modules": ["one", "two", "grouped", "three", "point"]}
SINGLE = ["lotr", "lotr-low-rank", "shared-in", "shared-out", "truncated"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder, and the model that the real peft saved there."""
    folder = tmp_path_factory.mktemp("llama") / "lora"
    return folder, pm.adapt(pm.llama, folder, **LLAMA)


def deltas_of(adapter):
    """ΔW of every module in float64, by plain products of what the adapter holds."""
    found = {}
    if isinstance(adapter, LoRAAdapter):
        for module in adapter.modules:
            up, down = (x.astype(np.float64) for x in module.factors())
            found[module.target.name] = up @ down
        return found
    for group in adapter.groups.values():
        dense = laws.dense_updates(lt.astype(group.stack, "float64"))
        found |= {target.name: w for target, w in zip(group.targets, dense, strict=True)}
    return found


def distance(a, b):
    assert set(a) == set(b)
    lost = sum(np.linalg.norm(a[name] - b[name]) ** 2 for name in a) ** 0.5
    size = sum(np.linalg.norm(w) ** 2 for w in a.values()) ** 0.5
    return lost / size if size else lost


def arrays_of(group):
    if isinstance(group, LoRAGroup):
        pairs = [(m.up, m.down) for m in group.modules]
        return [x for pair in pairs for x in pair] + [np.array([m.scale for m in group.modules])]
    return [x for x in vars(group.stack).values() if isinstance(x, np.ndarray)]


def same(a, b):
    """Whether two native adapters hold the same, bit for bit, with the same certificates."""
    assert list(a.groups) == list(b.groups)
    for one, two in zip(a.groups.values(), b.groups.values(), strict=True):
        assert format_of(one) == format_of(two)
        assert one.targets == two.targets
        for x, y in zip(arrays_of(one), arrays_of(two), strict=True):
            assert x.dtype == y.dtype
            assert x.tobytes() == y.tobytes()
        p, q = one.certificate, two.certificate
        assert np.array_equal(p.distances, q.distances)
        assert np.array_equal(p.norms, q.norms)
        assert (p.lower, p.upper, p.method, p.sweeps) == (q.lower, q.upper, q.method, q.sweeps)
    assert {k: t.array().tobytes() for k, t in a.extras.items()} == {
        k: t.array().tobytes() for k, t in b.extras.items()
    }
    assert a.config_text == b.config_text
    return True


def mixed(folder, epsilon=0.2):
    """Every format in one adapter, one kind of module each, and one kind kept as it is."""
    adapter = lt.load_adapter(folder)
    names = list(lt.group_modules(adapter))
    groups = {}
    for name, format in zip(names, [*SINGLE, "lora", "truncated"], strict=True):
        rule = lt.RelativeError(epsilon)
        conversion = lt.convert_adapter(adapter, rule, format=format, dtype="float32")
        groups[name] = conversion.adapter.groups[name]
    return replace(conversion.adapter, groups=groups)


def saved(adapter, tmp_path):
    file = tmp_path / "a.lotr.safetensors"
    lt.save_adapter(adapter, file, force=True)
    return lt.load_adapter(file)


def test_all_formats_in_one_file(llama, tmp_path):
    folder, adapted = llama
    adapter = mixed(folder)
    assert {format_of(group) for group in adapter.groups.values()} == {*SINGLE, "lora"}
    again = saved(adapter, tmp_path)
    assert same(adapter, again)
    wanted, found = deltas_of(lt.load_adapter(folder)), deltas_of(again)
    for name, group in again.groups.items():
        paths = [target.name for target in group.targets]
        error = distance({p: wanted[p] for p in paths}, {p: found[p] for p in paths})
        assert error == pytest.approx(group.certificate.relative_error, rel=1e-6, abs=1e-8), name
        assert error <= 0.2
        assert (error == 0) == (format_of(group) == "lora")
    for ranks in ("uniform", "minimal"):
        export = lt.to_lora(again, ranks=ranks)
        lt.save_adapter(export.adapter, tmp_path / ranks)
        exported = lt.load_adapter(tmp_path / ranks)
        assert distance(found, deltas_of(exported)) < 1e-6
        compared = lt.compare_adapters(lt.load_adapter(folder), exported)
        assert compared.relative_error == pytest.approx(distance(wanted, found), rel=1e-5)
        assert pm_logits_are_those_of(found, tmp_path / ranks)
    assert pm.logits(adapted).shape


def pm_logits_are_those_of(deltas, folder):
    """PEFT's logits are those of the plain model with the updates added to its weights."""
    plain = pm.seeded(pm.llama)
    modules = dict(plain.named_modules())
    with torch.no_grad():
        for name, delta in deltas.items():
            weight = modules[name].weight
            weight += torch.from_numpy(delta).to(weight.dtype)
    wanted = pm.logits(plain)
    assert (wanted - pm.logits(pm.seeded(pm.llama))).abs().max() > 1e-2
    return (pm.logits(pm.reload(pm.llama, folder)) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("epsilon", [0.6, 0.2, 1e-3])
@pytest.mark.parametrize("format", ["auto", *SINGLE])
def test_every_format_keeps_what_it_certifies(llama, tmp_path, format, epsilon):
    folder, _ = llama
    adapter = lt.load_adapter(folder)
    rule = lt.RelativeError(epsilon)
    conversion = lt.convert_adapter(adapter, rule, format=format, dtype="float32")
    again = saved(conversion.adapter, tmp_path)
    assert same(conversion.adapter, again)
    error = distance(deltas_of(adapter), deltas_of(again))
    assert error == pytest.approx(conversion.relative_error, rel=1e-5, abs=1e-8)
    assert conversion.met
    for group in again.groups.values():
        assert group.certificate.relative_error <= epsilon
        if format != "auto":
            assert format_of(group) == format
    export = lt.to_lora(again).adapter
    assert distance(deltas_of(adapter), deltas_of(export)) == pytest.approx(error, abs=1e-6)


def uneven(folder, tmp_path):
    """The adapter with one layer of each kind a hundred times as strong as the others."""
    tensors = load_file(folder / "adapter_model.safetensors")
    for key in tensors:
        if "lora_B" in key:
            tensors[key] *= 100.0 if ".layers.1." in key else 1.0
    target = tmp_path / "uneven"
    target.mkdir()
    save_file(tensors, target / "adapter_model.safetensors")
    (target / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    return target


def test_layers_that_are_cut_to_nothing(llama, tmp_path):
    folder = uneven(llama[0], tmp_path)
    adapter = lt.load_adapter(folder)
    conversion = lt.convert_adapter(adapter, lt.RelativeError(0.3), format="truncated")
    ranks = [rank for group in conversion.groups for rank in group.ranks]
    assert 0 in ranks
    assert max(ranks) > 0
    again = saved(conversion.adapter, tmp_path)
    assert same(conversion.adapter, again)
    for mode in ("uniform", "minimal"):
        export = lt.to_lora(again, ranks=mode)
        lt.save_adapter(export.adapter, tmp_path / mode)
        exported = lt.load_adapter(tmp_path / mode)
        assert distance(deltas_of(again), deltas_of(exported)) < 1e-6
        assert len(exported.modules) == len(adapter.modules)
        if mode == "minimal":
            assert {export.ranks[m.target.name] for m in exported.modules} == {
                max(rank, 1) for rank in ranks
            }
    error = lt.compare_adapters(adapter, exported).relative_error
    assert error == pytest.approx(conversion.relative_error, rel=1e-5)
    pm.reload(pm.llama, tmp_path / "uniform")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_what_is_kept_is_kept_bit_for_bit(llama, tmp_path, dtype):
    """The LoRA's own factors in their own dtype, with a scale of 1.25 beside them."""
    folder, _ = llama
    tensors = load_file(folder / "adapter_model.safetensors")
    own = {key: value.astype(dtype) for key, value in tensors.items()}
    target = tmp_path / "own"
    target.mkdir()
    save_file(own, target / "adapter_model.safetensors")
    (target / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    adapter = lt.load_adapter(target)
    conversion = lt.convert_adapter(
        adapter, lt.RelativeError(0.1), format="auto", keep=r"layers\.[02]\..*(q|up)_proj"
    )
    again = saved(conversion.adapter, tmp_path)
    assert same(conversion.adapter, again)
    kept = {
        module.target.name: module
        for name, group in again.groups.items()
        if name.endswith(".kept")
        for module in group.modules
    }
    assert sorted(kept) == [
        f"model.layers.{i}.{part}" for i in (0, 2) for part in ("mlp.up_proj", "self_attn.q_proj")
    ]
    prefix = "base_model.model."
    for name, module in kept.items():
        assert module.scale == 1.25
        for array, side in ((module.up, "B"), (module.down, "A")):
            wanted = own[f"{prefix}{name}.lora_{side}.weight"]
            assert array.dtype == wanted.dtype
            assert array.tobytes() == wanted.tobytes()
    for group in conversion.groups:
        if group.name.endswith(".kept"):
            assert group.format == "lora"
            assert group.parameters_after == group.parameters_before
            assert group.certificate.relative_error == 0
    error = distance(deltas_of(adapter), deltas_of(again))
    assert error == pytest.approx(conversion.relative_error, rel=1e-4)
    assert conversion.relative_error <= 0.1
    export = lt.to_lora(again, dtype="float64").adapter
    exported, wanted = deltas_of(export), deltas_of(adapter)
    for name in kept:
        assert np.allclose(exported[name], wanted[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rule", [lt.TotalError(0.3), lt.Budget(2500)], ids=str)
def test_what_is_kept_counts_in_the_whole(llama, tmp_path, rule):
    adapter = lt.load_adapter(llama[0])
    free = lt.convert_adapter(adapter, rule, format="auto")
    conversion = lt.convert_adapter(adapter, rule, format="auto", keep="q_proj")
    error = distance(deltas_of(adapter), deltas_of(saved(conversion.adapter, tmp_path)))
    assert error == pytest.approx(conversion.relative_error, rel=1e-4)
    assert conversion.met
    if isinstance(rule, lt.Budget):
        assert conversion.total("parameters_after") <= rule.size
        assert conversion.adapter.parameters == conversion.total("parameters_after")
        assert free.relative_error < conversion.relative_error
    else:
        assert error <= 0.3
        made = [g.certificate for g in conversion.groups if not g.name.endswith(".kept")]
        own = np.linalg.norm([c.distance for c in made]) / np.linalg.norm([c.norm for c in made])
        assert own > 0.3, "what is kept loses nothing, so the others may lose more"
        assert free.total("parameters_after") < conversion.total("parameters_after")
    assert conversion.bound <= (
        conversion.relative_error
        if isinstance(rule, lt.Budget)
        else 4 * conversion.total("parameters_after")
    )


def test_expressions_that_keep_nothing(llama):
    adapter, rule = lt.load_adapter(llama[0]), lt.RelativeError(0.1)
    with pytest.raises(
        OptionError, match=r"^keep 'nowhere' is found in no module; there is such as model"
    ):
        lt.convert_adapter(adapter, rule, format="auto", keep="nowhere")
    with pytest.raises(OptionError, match=r"takes a regular expression; '\(' is none"):
        lt.convert_adapter(adapter, rule, format="auto", keep="(")
    everything = lt.convert_adapter(adapter, rule, format="auto", keep=".")
    assert everything.relative_error == 0
    assert everything.total("parameters_after") == adapter.parameters


@pytest.mark.parametrize("format", ["auto", "lora", "truncated", "lotr", "shared-out"])
def test_grouped_convolutions(tmp_path, format):
    """A grouped conv stores a narrow output factor, which means a block-diagonal one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = pm.adapt(pm.Convs, tmp_path / "lora", grown=0.6, **CONVS)
    adapter = lt.load_adapter(tmp_path / "lora")
    conversion = lt.convert_adapter(adapter, lt.RelativeError(1e-4), format=format)
    again = saved(conversion.adapter, tmp_path)
    assert same(conversion.adapter, again)
    assert distance(deltas_of(adapter), deltas_of(again)) <= 1e-4
    if format in ("auto", "lora"):
        assert conversion.total("parameters_after") <= adapter.parameters
        grouped = next(g for g in again.groups.values() if g.targets[0].name == "grouped")
        assert format_of(grouped) == "lora"
        assert grouped.modules[0].up.shape == (10, 2)
    export = lt.to_lora(again)
    lt.save_adapter(export.adapter, tmp_path / "again")
    again = pm.reload(pm.Convs, tmp_path / "again")
    moved = (pm.logits(pm.seeded(pm.Convs)) - pm.logits(adapted)).abs().max()
    assert moved > 1e-2
    assert (pm.logits(again) - pm.logits(adapted)).abs().max() < 0.01 * moved


@pytest.fixture(scope="module")
def mixed_bytes(llama, tmp_path_factory):
    """A native file with a group in each form."""
    file = tmp_path_factory.mktemp("mixed") / "a.lotr.safetensors"
    lt.save_adapter(mixed(llama[0]), file)
    return file.read_bytes()


def damaged(file, change, drop=()):
    """The file again, with its header changed and some of its tensors left out."""
    with safe_open(file, "np") as found:
        header = json.loads(found.metadata()[METADATA_KEY])
    change(header)
    tensors = {k: v for k, v in load_file(file).items() if k not in drop}
    save_file(tensors, file, metadata={METADATA_KEY: json.dumps(header)})


def group_with(header, format):
    return next(g for g in header["groups"].values() if g["format"] == format)


def set_in(format, key, value):
    return lambda header: group_with(header, format).update({key: value})


def in_module(format, **changed):
    def change(header):
        modules = group_with(header, format)["modules"]
        first = {"name": modules[0]} if isinstance(modules[0], str) else modules[0]
        modules[0] = {**first, **changed}

    return change


def certified(**changed):
    """A certificate as earlier files tell it, with something changed."""
    told = {"relative_error": 0.1, "lower": 0.1, "upper": 0.2}
    each = {"layer_norms": [1.0] * 3, "layer_distances": [0.1] * 3}
    return lambda header: group_with(header, "lotr")["certificate"].update(told | each | changed)


NONSENSE = "has a header that makes no sense"
DAMAGES = {
    "unknown format": (set_in("truncated", "format", "hyper"), "unknown format 'hyper'; upgrade"),
    "a format that is no text": (set_in("truncated", "format", 3), "is 3, not a text"),
    "another format": (set_in("shared-in", "format", "truncated"), "no tensor groups.*of floats"),
    "the other side": (set_in("shared-in", "format", "shared-out"), NONSENSE),
    "ranks too large": (set_in("truncated", "ranks", [9, 9, 9]), NONSENSE),
    "ranks beyond any": (set_in("truncated", "ranks", [10**12] * 3), NONSENSE),
    "ranks missing": (lambda h: group_with(h, "truncated").pop("ranks"), "it lacks 'ranks'"),
    "ranks of cores": (set_in("lotr-low-rank", "ranks", [1, 1, 1]), NONSENSE),
    "other ranks of factors": (set_in("lotr", "ranks", [3, 3]), "the ranks of .* is said to be"),
    "negative ranks": (set_in("truncated", "ranks", [-1, 2, 2]), "is -1, not a whole number"),
    "ranks that are no list": (set_in("lotr", "ranks", 3), "is 3, not a list"),
    "another shape": (set_in("lotr", "shape", [3, 2, 3]), r"is said to be \(3, 2, 3\)"),
    "a shape of other layers": (set_in("lotr", "shape", [1, 2, 3]), "names 3 modules for 1 layers"),
    "a shape of nothing": (set_in("lotr", "shape", [3, 0, 3]), "has the shape 3x0x3"),
    "another dtype": (set_in("lotr", "dtype", "float64"), "the dtype of .* is said to be float64"),
    "no dtype": (set_in("lotr", "dtype", "int7"), "the dtype of .* is 'int7'"),
    "a layer less": (lambda h: group_with(h, "lotr")["modules"].pop(), "names 2 modules for 3"),
    "a kept layer less": (lambda h: group_with(h, "lora")["modules"].pop(), "names 2 modules for"),
    "no kept layers": (set_in("lora", "modules", []), "names 0 modules for 3 layers"),
    "modules that are no list": (set_in("lora", "modules", {}), "not a list"),
    "a module twice": (in_module("lotr", name="model.layers.0.mlp.up_proj"), "names the module"),
    "a name that is no text": (in_module("lotr", name=["x"]), "not a text"),
    "no groups of a conv": (in_module("lora", groups=0), "unknown layout"),
    "groups of no conv": (in_module("lotr", groups=2), "unknown layout"),
    "a billion groups": (in_module("lotr", groups=10**9, layout="conv"), "unknown layout"),
    "groups that divide nothing": (
        in_module("lotr", groups=10**9, layout="conv", kernel=[1]),
        "has rank|has a kernel of 1 and 1000000000 groups",
    ),
    "a layout that is none": (in_module("lotr", layout="x"), "unknown layout 'x'"),
    "a conv without kernel": (in_module("lotr", layout="conv"), "unknown layout"),
    "a kernel that does not fit": (in_module("lotr", layout="conv", kernel=[7]), "a kernel of 7"),
    "half a rank": (in_module("lotr", rank=1.5), "is 1.5, not a whole number"),
    "other kept ranks": (in_module("lora", rank=10**9), "do not fit"),
    "no scale": (lambda h: group_with(h, "lora")["each"].pop("scale"), "it lacks 'scale'"),
    "a scale that is text": (in_module("lora", scale="big"), "a scale is 'big'"),
    "an endless scale": (in_module("lora", scale=1e400), "holds the number Infinity"),
    "a scale of no float": (in_module("lora", scale=10**400), "a scale is 1000"),
    "no certificate": (lambda h: group_with(h, "lotr").pop("certificate"), "lacks 'certificate'"),
    "a certificate of one number": (set_in("lotr", "certificate", 0.5), "is 0.5, not a table"),
    "a negative distance": (certified(layer_distances=[-1.0, 0, 0]), "layer_distances .* is -1.0"),
    "a norm that is none": (certified(layer_norms=[1, math.nan, 1]), "holds the number NaN"),
    "a short certificate": (certified(layer_norms=[1.0]), "has 1 layer_norms for 3 layers"),
    "a scalar for norms": (certified(layer_norms=1.0), "is 1.0, not a list"),
    "a bound that is none": (certified(lower=None), "lower of .* is None"),
    "a negative error": (certified(relative_error=-0.5), "the error of .* is -0.5"),
    "figures of no group": (certified(), r"there are figures of \d+ layers"),
    "a method that is none": (certified(method=7), "the method of .* is 7, not a text"),
    "half a sweep": (certified(sweeps=0.5), "is 0.5, not a whole number"),
    "groups that are a list": (lambda h: h.update(groups=[]), r"the groups is \[\], not a table"),
    "no groups": (lambda h: h.update(groups={}), "there is no group"),
    "no source": (lambda h: h.pop("source"), "it lacks 'source'"),
    "a source that is a text": (lambda h: h.update(source="x"), "the source is 'x', not a table"),
    "a dtype of nothing": (lambda h: h["source"].update(dtype=4), "is 4, not a text"),
    "a configuration that is a list": (
        lambda h: h["source"].update(config="[1]"),
        "no JSON object",
    ),
    "a configuration that is deep": (
        lambda h: h["source"].update(config="[" * 100_000),
        "the configuration is no JSON object",
    ),
    "a later schema": (lambda h: h.update(schema=9), "schema 9; this version reads those up to 2"),
    "a schema that is none": (lambda h: h.update(schema=[1]), r"the schema is \[1\]"),
}


FIGURES = {
    "none": (lambda rows: rows[:0], "has no figures"),
    "one too few": (lambda rows: rows[:-1], "has no figures"),
    "one too many": (lambda rows: np.vstack([rows, rows[:1]]), "there are figures of"),
    "narrow": (lambda rows: rows.astype(np.float32), r"figures is of float32"),
    "flat": (lambda rows: rows.ravel(), r"figures is of float64 \["),
    "negative": (lambda rows: rows - 1e9, "no finite number of at least 0"),
    "not finite": (lambda rows: rows + np.inf, "no finite number of at least 0"),
}


@pytest.mark.parametrize("damage", FIGURES)
def test_figures_that_make_no_sense_are_refused(mixed_bytes, tmp_path, damage):
    change, message = FIGURES[damage]
    file = tmp_path / "a.lotr.safetensors"
    file.write_bytes(mixed_bytes)
    with safe_open(file, "np") as found:
        metadata = {METADATA_KEY: found.metadata()[METADATA_KEY]}
    tensors = load_file(file)
    save_file(tensors | {"figures": change(tensors["figures"])}, file, metadata=metadata)
    with pytest.raises(CheckpointError, match=message):
        lt.load_adapter(file)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_headers_are_refused(mixed_bytes, tmp_path, damage):
    change, message = DAMAGES[damage]
    file = tmp_path / "a.lotr.safetensors"
    file.write_bytes(mixed_bytes)
    damaged(file, lambda header: None)
    lt.load_adapter(file)  # the way in which it is rewritten damages nothing
    damaged(file, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        lt.load_adapter(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"schema": ' + "1" * 5000 + "}", "ValueError"),
        ("[1]", r"the header is \[1\], not a table"),
        ('{"schema": 1, "schema": 1}', "a name stands twice"),
        ("{}", "it lacks 'schema'"),
        ("no text of JSON", "JSONDecodeError"),
    ],
)
def test_headers_that_are_none(tmp_path, text, message):
    file = tmp_path / "a.lotr.safetensors"
    save_file({"extras.x": np.ones(3, np.float32)}, file, metadata={METADATA_KEY: text})
    with pytest.raises(CheckpointError, match=message) as caught:
        lt.load_adapter(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("format", [*SINGLE, "lora"])
def test_missing_and_stray_tensors_are_refused(mixed_bytes, tmp_path, format):
    file = tmp_path / "a.lotr.safetensors"
    file.write_bytes(mixed_bytes)
    groups = lt.load_adapter(file).groups
    name = next(n for n, g in groups.items() if format_of(g) == format)
    keys = [key for key in load_file(file) if key.startswith(f"groups.{name}.")]
    assert len(keys) >= 2
    for key in keys:
        file.write_bytes(mixed_bytes)
        damaged(file, lambda header: None, drop=[key])
        with pytest.raises(CheckpointError, match=rf"has no tensor {key} of floats; copy it again"):
            lt.load_adapter(file)
    file.write_bytes(mixed_bytes)
    with safe_open(file, "np") as found:
        header = {METADATA_KEY: found.metadata()[METADATA_KEY]}
    stray = {f"groups.{name}.more": np.ones(3, np.float32)}
    save_file(load_file(file) | stray, file, metadata=header)
    with pytest.raises(CheckpointError, match=rf"unknown key 'groups.{name}.more'"):
        lt.load_adapter(file)


def test_files_of_before_name_no_format(llama, tmp_path):
    """The only format there was: a group without a format is a LoTR."""
    file = tmp_path / "a.lotr.safetensors"
    conversion = lt.convert_adapter(lt.load_adapter(llama[0]), (3, 2))
    lt.save_adapter(conversion.adapter, file)
    damaged(file, lambda h: [group.pop("format") for group in h["groups"].values()])
    assert same(conversion.adapter, lt.load_adapter(file))


def within(adapter, size, format, keep):
    """A conversion within so many bytes; None where that is refused in the right words."""
    try:
        return lt.convert_adapter(adapter, lt.Budget(bytes=size), format=format, keep=keep)
    except OptionError as error:
        refused = str(error)
    assert "the smallest result, with one direction in every group, takes" in refused
    assert f"the budget is {size:,}: ask for more" in refused
    return None


@pytest.mark.parametrize(
    ("extras", "keep", "format"),  # every two of them meet
    [
        (False, None, "auto"),
        (True, "value", "auto"),
        (True, None, "lotr"),
        (False, "value", "lotr"),
    ],
)
def test_a_file_is_within_its_budget(tmp_path, extras, keep, format):
    more = {"task_type": "SEQ_CLS"} if extras else {}
    pm.adapt(
        pm.bert, tmp_path / "lora", r=4, lora_alpha=7, target_modules=["query", "value"], **more
    )
    adapter = lt.load_adapter(tmp_path / "lora")
    assert bool(adapter.extras) == extras
    file = tmp_path / "a.lotr.safetensors"
    most = (tmp_path / "lora" / "adapter_model.safetensors").stat().st_size
    used, errors = [], []
    for size in range(most // 2, most + 12_000, 600):
        conversion = within(adapter, size, format, keep)
        if conversion is None:
            assert not errors, "a larger budget is refused"
            continue
        lt.save_adapter(conversion.adapter, file, force=True)
        assert file.stat().st_size <= size
        used.append(file.stat().st_size / size)
        errors.append(conversion.relative_error)
    assert len(errors) > 3
    assert errors[0] > errors[-1]
    assert errors[-1] < 1e-6 or format == "lotr"
    assert max(used) > 0.8, "most of a budget is used"


def test_budgets_that_are_too_small(llama):
    adapter = lt.load_adapter(llama[0])
    words = r"takes [\d,]+ bytes, .* of them for what is kept as it is and the header"
    with pytest.raises(OptionError, match=words):
        lt.convert_adapter(adapter, lt.Budget(bytes=100), format="auto")
    with pytest.raises(OptionError, match=r"one direction in every group, takes .* parameters;"):
        lt.convert_adapter(adapter, lt.Budget(10), format="auto")
    with pytest.raises(OptionError, match="has no ranks to be told"):
        lt.convert_adapter(adapter, 4, format="auto")
    with pytest.raises(OptionError, match=r"format must be one of auto, lora, .*; found 'cur'"):
        lt.convert_adapter(adapter, 4, format="cur")


@pytest.mark.parametrize("form", [*SINGLE, "lora"])
def test_a_size_does_not_depend_on_the_digits_of_figures(form, llama, tmp_path):
    made = lt.convert_adapter(lt.load_adapter(llama[0]), lt.RelativeError(0.5), format=form).adapter
    sizes, figures = set(), (0.5, 0.1234567890123456, 1.2345678901234567e-123)
    for at, figure in enumerate(figures):
        groups = {}
        for name, group in made.groups.items():
            each = np.full(group.shape[0], figure)
            kept = group.certificate
            certificate = Certificate(each, each, each[0], each[0], kept.method, kept.sweeps)
            if form == "lora":
                groups[name] = replace(group, certificate=certificate)
            else:
                stack = replace(group.stack, certificate=certificate)
                groups[name] = replace(group, stack=stack)
        path = tmp_path / f"{at}.lotr.safetensors"
        lt.save_adapter(replace(made, groups=groups), path)
        sizes.add(path.stat().st_size)
        read = next(iter(lt.load_adapter(path).groups.values())).certificate
        assert read.distances.tolist() == [figure] * len(read.distances)
    assert len(sizes) == 1
