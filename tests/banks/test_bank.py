"""A bank that is open: adapters one by one, stacks for mixed batches, and headers of strangers."""

import copy
import json

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.banks.bank import _one_stack
from lotr_tn.files.container import Entry, read_container, write_container, write_digested
from lotr_tn.formats import LoRAStack
from tests.banks import fleets

RULE = lt.RelativeError(0.05)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bank.lotr.safetensors"


def grown(path, fleet, first=4, **options):
    return fleets.grown(fleet, path, first, **options)


# --- mixed batches


def require_rows(bank, module, rows=11, seed=0):
    """Every row through another adapter is a dense product of its own."""
    stack, names = bank.stack(module)
    having = [name for name in bank if module in fleets.dense(bank[name])]
    assert sorted(names) == sorted(having)
    assert stack.shape[0] == len(names)
    rng = np.random.default_rng(seed)
    layer = rng.integers(0, len(names), rows).tolist()
    x = rng.standard_normal((rows, stack.shape[2]))
    found = lt.apply(lt.astype(stack, "float64"), x, layer=layer)
    wanted = np.stack(
        [fleets.dense(bank[names[at]])[module] @ row for at, row in zip(layer, x, strict=True)]
    )
    assert np.allclose(found, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    dtype = lt.ops.arrays.storage_dtype(stack)
    if dtype in ("float32", "float64"):
        own = lt.apply(stack, x.astype(dtype), layer=layer)
        assert np.allclose(own, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    return stack


COMBINATIONS = [
    *[("auto", stack) for stack in ("adapters", "layers", "all")],
    *[("lotr", stack) for stack in ("adapters", "all")],
    *[("lotr-low-rank", stack) for stack in ("adapters", "layers")],
    *[("shared-in", stack) for stack in ("layers", "all")],
    ("truncated", "adapters"),
]
"""Formats and ways of stacking; what a format stores does not ask how stacks came about."""


@pytest.mark.parametrize(("format", "stack"), COMBINATIONS)
def test_a_stack_takes_another_adapter_for_each_row(format, stack, path):
    fleet = fleets.mixed()
    bank = grown(path, fleet, 7, format=format, stack=stack)
    for module in bank.modules:
        require_rows(bank, module)


@pytest.mark.parametrize("format", ["auto", "lotr", "lotr-low-rank", "shared-out", "lora"])
def test_a_stack_holds_appended_adapters_of_other_formats_and_segments(format, path):
    fleet = fleets.fleet(8, ranks=(2, 4), noise=0.04)
    bank = grown(path, fleet, 5, format=format, dtype="float32")
    assert any(len(group.outputs) > 1 for group in bank.groups.values()) or format == "lora"
    for module in bank.modules:
        require_rows(bank, module)
    bank = lt.banks.drop_adapters(path, ["a1", "a5"]).bank
    for module in bank.modules:
        require_rows(bank, module)
    bank = lt.banks.compact_bank(path, rule=lt.RelativeError(0.2)).bank
    for module in bank.modules:
        require_rows(bank, module)


def test_segments_alone_stay_one_tucker2(path):
    one = {"q": ((40, 30), fleets.Layout())}
    fleet = fleets.fleet(6, kinds=one, layers=1, noise=0.02)
    lt.banks.make_bank({"a0": fleet["a0"], "a1": fleet["a1"]}, path, RULE, format="lotr")
    bank = lt.banks.load_bank(path)
    assert isinstance(require_rows(bank, "model.layers.0.q"), lt.Tucker2)


def test_a_module_that_nobody_has_is_named(path):
    bank = grown(path, fleets.fleet(4))
    with pytest.raises(lt.errors.CheckpointError, match=r"updates nothing; it has model\.layers"):
        bank.stack("nothing")


# --- one by one


def test_adapters_share_the_very_same_bases(path):
    bank = grown(path, fleets.fleet(6, noise=0.0), 6, format="lotr", stack="adapters")
    one, other, again = bank["a0"], bank["a1"], bank.load("a0")
    assert one.groups.keys() == other.groups.keys()
    for name, group in one.groups.items():
        for second in (other.groups[name], again.groups[name]):
            assert second.stack.u is group.stack.u
            assert second.stack.v is group.stack.v
    stack, _ = bank.stack("model.layers.0.q")
    mine = next(g for g in one.groups.values() if g.targets[0].name == "model.layers.0.q")
    assert np.shares_memory(stack.u, mine.stack.u)


def test_nothing_of_other_adapters_is_read(path):
    """Cores of all but one adapter are NaN: that one still loads, and the others do not."""
    bank = grown(path, fleets.fleet(6), 6, format="lotr", stack="adapters")
    known = fleets.export(bank, "a3", path.parent / "out")
    raw, container = bytearray(path.read_bytes()), read_container(path)
    entries = {name: container.entry(name) for name in container.tensors}
    for name, group in bank.groups.items():
        (part,) = group.parts
        core = part.tensors["core"].array.copy()
        at = bytes(raw).index(core.tobytes())
        core[part.index[:, 0] != 3] = np.nan
        raw[at : at + core.nbytes] = core.tobytes()
        entries[f"groups.{name}.parts.0.core"] = Entry.of_array(core)
    written = path.with_name("written.lotr.safetensors")
    write_digested(written, entries, container.text, force=False)
    found = lt.banks.load_bank(written)
    assert fleets.export(found, "a3", path.parent / "out") == known
    with pytest.raises(lt.errors.CheckpointError, match="holds NaN or infinite"):
        found.load("a2")
    assert lt.banks.verify_bank(written) == []
    path.write_bytes(raw)  # with the checksums of before, nothing of these tensors is believed
    for name in ("a2", "a3"):
        with pytest.raises(lt.errors.CheckpointError, match="is damaged"):
            lt.banks.load_bank(path).load(name)
    assert len(lt.banks.verify_bank(path)) == len(bank.groups)


def test_cores_are_views_of_the_file(path):
    bank = grown(path, fleets.fleet(4), 4, format="lotr")
    for group in bank["a2"].groups.values():
        owner = group.stack.core
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        assert owner.dtype == np.uint8, "bytes of the file, mapped or read, and no copy"


def test_a_bank_is_a_mapping(path):
    fleet = fleets.fleet(4)
    bank = grown(path, fleet)
    assert list(bank) == list(fleet) == list(bank.names)
    assert len(bank) == 4
    assert "a2" in bank
    assert "b" not in bank
    assert bank.get("b") is None
    with pytest.raises(KeyError):
        bank["b"]
    with pytest.raises(lt.errors.CheckpointError, match="holds no adapter 'b'; it holds a0, a1"):
        bank.load("b")
    assert bank["a1"].source == path / "a1"


def test_figures_say_what_each_adapter_takes(path):
    fleet = {"own": fleets.adapter(0, extras={fleets.HEAD: fleets.head(3)}), **fleets.fleet(4)}
    bank = grown(path, fleet, 3, cluster=False)
    own = sum(bank.figures(name).own_bytes for name in bank)
    shared = sum(t.entry.nbytes for g in bank.groups.values() for t in (*g.outputs, *g.inputs))
    common = {bank.adapters[bank.place(f"a{i}")].config for i in range(4)}
    used = sum(bank.contents[at].entry.nbytes for at in common) if len(common) == 1 else 0
    assert own + shared + used == bank.nbytes
    one, held = bank.figures("own"), bank.adapters[bank.place("own")]
    apart = bank.contents[held.config].entry.nbytes * (held.config not in common)
    assert one.other_bytes == fleets.head(3).data.nbytes + apart < one.own_bytes
    assert {bank.figures(f"a{i}").other_bytes for i in range(4)} == {0}
    assert bank.relative_error == pytest.approx(fleets.joint_error(bank, fleet), rel=1e-4)


# --- the header


@pytest.fixture
def header(path):
    """The header of a sound bank, its tensors, and a way to write them with something changed."""
    fleet = fleets.fleet(3, extras={fleets.HEAD: fleets.head(0)})
    grown(path, fleet, 3, format="lotr", stack="adapters", cluster=False)
    container = read_container(path)
    text = fleets.told_whole(json.loads(container.text))

    def write(change=None, arrays=None):
        found, entries = copy.deepcopy(text), {n: container.entry(n) for n in container.tensors}
        if change is not None:
            changed = change(found)
            found = found if changed is None else changed
        for name, array in (arrays or {}).items():
            entries[name] = Entry.of_array(array) if isinstance(array, np.ndarray) else array
        other = path.with_name("other.lotr.safetensors")
        other.unlink(missing_ok=True)
        whole = found if isinstance(found, str) else json.dumps(found)
        write_container(other, {n: e for n, e in entries.items() if e is not None}, whole)
        return other

    return write, container, text


def test_a_header_is_read_as_it_was_written(header, path):
    write, _, _ = header
    one, other = lt.banks.load_bank(path), lt.banks.load_bank(write())
    assert one.adapters == other.adapters
    assert (one.asked, one.stacking, one.explanation) == (
        other.asked,
        other.stacking,
        other.explanation,
    )
    for group, again in zip(one.groups.values(), other.groups.values(), strict=True):
        assert (group.name, group.shape, group.modules, group.cluster) == (
            again.name, again.shape, again.modules, again.cluster,
        )  # fmt: skip
        for part, second in zip(group.parts, again.parts, strict=True):
            assert np.array_equal(part.index, second.index)
            assert np.array_equal(part.figures, second.figures)


def changed(*keys, to):
    """A change of one place of the header."""

    def change(header):
        place = header
        for key in keys[:-1]:
            place = place[key if not callable(key) else key(place)]
        last = keys[-1]
        if to is KeyError:
            del place[last]
        else:
            place[last] = to

    return change


def first(place):
    return next(iter(place))


GROUP = ("groups", first)
PART = (*GROUP, "parts", 0)
HOSTILE = {
    "a later schema": (("schema",), 3, "schema 3; this version reads those up to 2: upgrade"),
    "no schema": (("schema",), KeyError, "makes no sense"),
    "a schema of text": (("schema",), "1", "makes no sense"),
    "an unknown format": ((*PART, "format"), "zip", "unknown format 'zip'; upgrade"),
    "a format of a list": ((*PART, "format"), [], "makes no sense"),
    "an unknown stacking": (("stacking",), "rows", "the stacking is 'rows'"),
    "a stacking of a list": (("stacking",), [], "makes no sense"),
    "an unknown dtype": (("adapters", 0, "dtype"), "int3", "the dtype of a0 is int3"),
    "a name twice": (("adapters", 0, "name"), "a1", "two adapters have one name"),
    "no name": (("adapters", 0, "name"), "", "an adapter has no name"),
    "a name of a number": (("adapters", 0, "name"), 7, "is 7, not a text"),
    "no adapters": (("adapters",), [], "there is no adapter"),
    "adapters of a number": (("adapters",), 3, "makes no sense"),
    "a configuration out of range": (("adapters", 0, "config"), 99, "is 99, not a whole number"),
    "a negative configuration": (("adapters", 0, "config"), -1, "is -1, not a whole number below"),
    "a configuration that is a head": (("adapters", 0, "config"), 1, "of a0 is no text"),
    "extras out of range": (("adapters", 1, "extras"), [99], "is 99, not a whole number below"),
    "negative extras": (("adapters", 1, "extras"), [-1], "is -1, not a whole number below"),
    "too many extras": (("adapters", 1, "extras"), [1, 1], "makes no sense"),
    "keys out of range": (("adapters", 1, "keys"), 5, "is 5, not a whole number below"),
    "negative keys": (("adapters", 1, "keys"), -1, "is -1, not a whole number below"),
    "a cluster of a half": (("adapters", 0, "cluster"), 0.5, "is 0.5, not a whole number"),
    "negative parameters": (("adapters", 0, "parameters"), -4, "is -4, not a whole number"),
    "a number that is true": (("adapters", 0, "parameters"), True, "is True, not a whole number"),
    "more contents": (("contents",), 9, "lacks the tensor contents."),
    "negative contents": (("contents",), -1, "is -1, not a whole number"),
    "fewer contents": (("contents",), 1, "not a whole number below 1"),
    "another shape": ((*GROUP, "shape"), [17, 23], "has the shape"),
    "a negative shape": ((*GROUP, "shape"), [-23, 17], "is -23, not a whole number"),
    "three sizes": ((*GROUP, "shape"), [23, 17, 2], "makes no sense"),
    "no size": ((*GROUP, "shape"), [0, 17], "has the shape 0x17"),
    "no module": ((*GROUP, "modules"), [], "has no module"),
    "a module of a number": ((*GROUP, "modules"), [3], "makes no sense"),
    "an unknown layout": ((*GROUP, "modules", 0, "layout"), "round", "unknown layout"),
    "groups that do not divide": ((*GROUP, "modules", 0, "groups"), 5, "layout"),
    "no groups": ((*GROUP, "modules", 0, "groups"), 0, "layout"),
    "a kernel of nothing": ((*GROUP, "modules", 0, "kernel"), [0], "layout"),
    "a negative kernel": ((*GROUP, "modules", 0, "kernel"), [-3], "not a whole number"),
    "the module of another group": ((*GROUP, "modules", 0, "name"), "model.layers.1.q", "two"),
    "the module of another shape": ((*GROUP, "modules", 0, "name"), "model.layers.1.v", "two"),
    "more segments": ((*GROUP, "segments"), 2, "lacks the tensor"),
    "no segments": ((*GROUP, "segments"), 0, "use 1 segments of 0"),
    "more segments of layers": ((*PART, "segments"), 2, "use 2 segments of 1"),
    "no segments of layers": ((*PART, "segments"), 0, "use 0 segments of 1"),
    "another format": ((*PART, "format"), "truncated", "lacks the tensor"),
    "no parts": ((*GROUP, "parts"), [], "holds no layers"),
    "parts of text": ((*GROUP, "parts"), "ab", "makes no sense"),
    "no groups at all": (("groups",), {}, "a0 updates no module"),
    "asked for text": (("asked",), "much", "what was asked for is no table"),
    "asked for less than nothing": (("asked",), {"relative_error": -1}, "asked for is -1"),
    "an explanation of a list": (("explanation",), [], "the explanation is no table"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_headers_that_make_no_sense_are_refused_in_a_sentence(case, header):
    write, _, _ = header
    keys, value, words = HOSTILE[case]
    refused(write(changed(*keys, to=value)), words)


def refused(file, words):
    with pytest.raises(lt.errors.CheckpointError, match=words) as caught:
        lt.banks.load_bank(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    with pytest.raises(lt.errors.CheckpointError):
        lt.banks.add_adapters(file, {"new": fleets.adapter(9)})


@pytest.mark.parametrize("text", ["", "nothing", "[]", "3", "null", "[" * 100_000, '{"schema": 1}'])
def test_texts_that_are_no_header_are_refused(text, header):
    write, _, _ = header
    refused(write(lambda _: text), "makes no sense")


def indexed(column, value, row=0):
    def change(index, figures):
        index[row, column] = value
        return index, figures

    return change


def figured(column, value, row=0):
    def change(index, figures):
        figures[row, column] = value
        return index, figures

    return change


NUMBERS = {
    "an adapter out of range": (indexed(0, 3, row=2), "a layer of adapter 3, and there are 3"),
    "a negative adapter": (indexed(0, -1), "holds a negative number"),
    "a module out of range": (indexed(1, 1, row=2), "a layer of module 1, and there are 1"),
    "a negative rank": (indexed(2, -3), "holds a negative number"),
    "negative terms": (indexed(3, -3), "holds a negative number"),
    "layers out of order": (lambda i, f: (i[::-1].copy(), f), "out of order"),
    "a layer twice": (indexed(0, 1), "out of order"),
    "too few layers": (lambda i, f: (i[:2], f[:2]), "has the shape"),
    "too few figures": (
        lambda i, f: (i, f[:2]),
        "figures has the shape|figures of .* have the shape",
    ),
    "too many layers": (lambda i, f: (np.concatenate([i, i]), f), "index has the shape"),
    "too many figures": (lambda i, f: (i, np.concatenate([f, f])), "figures has the shape"),
    "three columns": (lambda i, f: (i[:, :3].copy(), f), "index has the shape"),
    "three figures": (lambda i, f: (i, f[:, :3].copy()), "figures has the shape"),
    "one axis": (lambda i, f: (i.reshape(-1), f), "index has the shape"),
    "an index of floats": (lambda i, f: (i.astype(np.float32), f), "is of float32"),
    "figures of float32": (lambda i, f: (i, f.astype(np.float32)), "is of float32"),
    "a distance of nan": (figured(0, np.nan), "are not finite"),
    "a norm of infinity": (figured(1, np.inf), "are not finite"),
    "a negative drift": (figured(2, -1.0), "hold a negative norm"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_indices_and_figures_that_make_no_sense_are_refused(case, header):
    write, container, _ = header
    change, words = NUMBERS[case]
    index = container.tensors["index"]
    index = index.data.view(np.int32).reshape(index.shape).copy()
    figures = container.tensors["figures"].array()
    figures = np.column_stack([figures, np.zeros(len(figures)), np.ones(len(figures))])
    index, figures = change(index, figures)
    refused(write(arrays={"index": index, "figures": figures}), words)


@pytest.mark.parametrize("name", ["outputs.0", "inputs.0", "parts.0.core"])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[..., :-1].copy(),
        lambda x: x.reshape(-1),
        lambda x: x.astype(np.float64),
        lambda x: (x * 0).astype(np.int8),
        lambda x: x[:0],
        lambda x: None,
    ],
    ids=["narrower", "flat", "wider", "whole numbers", "nothing", "absent"],
)
def test_tensors_of_other_shapes_and_dtypes_are_refused(name, change, header):
    write, container, text = header
    key = f"groups.{next(iter(text['groups']))}.{name}"
    other = change(container.tensors[key].array())
    refused(write(arrays={key: other}), "makes no sense|lacks the tensor")


def test_a_configuration_that_is_no_json_is_refused(header):
    write, container, _ = header
    entry = container.entry("contents.0")
    for junk in (b"\xff" * entry.shape[0], b"[" * entry.shape[0], b"1" * entry.shape[0]):
        data = np.frombuffer(junk, dtype=np.uint8)
        bank = lt.banks.load_bank(write(arrays={"contents.0": Entry.of_array(data)}))
        with pytest.raises(lt.errors.CheckpointError, match=r"configuration of a0 .* is damaged"):
            bank.load("a0")


def test_damaged_figures_are_found_at_once(path):
    bank = grown(path, fleets.fleet(3), 3)
    part = next(iter(bank.groups.values())).parts[0]
    raw = bytearray(path.read_bytes())
    raw[bytes(raw).index(part.figures[:, :2].tobytes())] ^= 1
    path.write_bytes(raw)
    with pytest.raises(lt.errors.CheckpointError, match=r"damaged: the bytes of tensor .*figures"):
        lt.banks.load_bank(path)


def test_a_file_that_is_no_bank_is_refused(path, tmp_path):
    made = lt.convert_adapter(fleets.adapter(0), RULE)
    lt.save_adapter(made.adapter, path)
    with pytest.raises(lt.errors.CheckpointError, match="is not a bank"):
        lt.banks.load_bank(path)
    with pytest.raises(lt.errors.CheckpointError, match="no such file"):
        lt.banks.load_bank(tmp_path / "absent.safetensors")


def test_half_precisions_meet_in_one_that_holds_both():
    """bfloat16 has entries that float16 has not, and the other way round."""
    import ml_dtypes

    large = LoRAStack(
        np.full((2, 1), 3e5, ml_dtypes.bfloat16), np.ones((1, 3), ml_dtypes.bfloat16), (1,)
    )
    fine = LoRAStack(np.full((2, 1), 1 + 2**-10, np.float16), np.ones((1, 3), np.float16), (1,))
    joined = _one_stack([large, fine])
    assert isinstance(joined, LoRAStack)
    assert joined.up.dtype == np.float32
    assert joined.up[0].tolist() == [float(large.up[0, 0]), 1 + 2**-10]
