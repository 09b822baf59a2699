"""Adapters of several dtypes that are kept as they are: each in its own, so that none grows."""

import numpy as np
import pytest

import lotr_tn as lt
from tests.banks import fleets

DTYPES = ("float16", "float32", "bfloat16")


@pytest.fixture(scope="module")
def fleet():
    """Adapters that share nothing, each in another dtype; the last has modules of two."""
    made = {dtype: fleets.adapter(at, dtype=dtype) for at, dtype in enumerate(DTYPES)}
    halves = [fleets.adapter(9, dtype=dtype).modules for dtype in ("float16", "float32")]
    made["both"] = fleets.assembled([*halves[0][:2], *halves[1][2:]])
    return made


def require_as_they_were(bank, fleet):
    """Every update comes back as it was."""
    assert {*bank.names} == {*fleet}
    for name, adapter in fleet.items():
        found, wanted = fleets.dense(bank[name]), fleets.dense(adapter)
        for path in wanted:
            np.testing.assert_array_equal(found[path], wanted[path])


@pytest.mark.parametrize("stack", ["auto", "adapters", "layers", "all"])
def test_what_is_kept_takes_what_it_took(stack, fleet, tmp_path):
    path = tmp_path / "bank.lotr.safetensors"
    made = lt.banks.make_bank(fleet, path, lt.RelativeError(0), stack=stack)
    own = [x.nbytes for a in fleet.values() for m in a.modules for x in (m.up, m.down)]
    taken = sum(t.entry.nbytes for group in made.bank.groups.values() for t in group.tensors)
    assert taken == sum(own) == made.bytes_updates_before
    assert {one for _, part in made.bank.parts for one in part.dtypes} == set(DTYPES)
    require_as_they_were(made.bank, fleet)
    lt.banks.verify_bank(path)


def test_it_is_changed_as_any_other(fleet, tmp_path):
    path = tmp_path / "bank.lotr.safetensors"
    some = {name: fleet[name] for name in ("float16", "float32")}
    lt.banks.make_bank(some, path, lt.RelativeError(0))
    for name in ("bfloat16", "both"):
        lt.banks.add_adapters(path, {name: fleet[name]})
    require_as_they_were(lt.banks.load_bank(path), fleet)
    lt.banks.drop_adapters(path, ["float32"])
    rest = {name: one for name, one in fleet.items() if name != "float32"}
    require_as_they_were(lt.banks.load_bank(path), rest)
    lt.banks.compact_bank(path, rule=lt.RelativeError(0.1))
    fleets.require_true(lt.banks.load_bank(path), rest, 0.1)


@pytest.mark.parametrize("error", [1e-4, 0.003, 0.1])
def test_no_error_makes_more_of_it(error, fleet, tmp_path):
    path = tmp_path / "bank.lotr.safetensors"
    made = lt.banks.make_bank(fleet, path, lt.RelativeError(error))
    assert made.met
    fleets.require_true(made.bank, fleet, error)
    taken = sum(t.entry.nbytes for group in made.bank.groups.values() for t in group.tensors)
    assert taken <= made.bytes_updates_before
    assert made.bytes_separate is not None
    assert made.bytes_separate <= made.bytes_updates_before
