"""The smallest budgets: what is refused cannot be met, and what is told can."""

import re

import pytest

import lotr_tn as lt
from lotr_tn.banks import make_bank
from lotr_tn.errors import OptionError
from tests.banks import fleets

FLEETS = {
    "alike": lambda: fleets.fleet(3),
    "strangers": lambda: fleets.strangers(2),
    "heads": lambda: fleets.fleet(2, extras={fleets.HEAD: fleets.head(0)}),
}
STACKS = ("adapters", "layers", "all")


def floor(fleet, path, kind, least, **options):
    """The smallest budget, as the refusal of a smaller one tells it."""
    with pytest.raises(OptionError, match="the smallest bank found, ") as caught:
        make_bank(fleet, path, lt.Budget(**{kind: least}), **options)
    assert not path.exists()
    (told,) = re.findall(r"takes ([\d,]+) (?:bytes|parameters)", str(caught.value))
    return int(told.replace(",", ""))


@pytest.mark.parametrize("kind", ["bytes", "params"])
@pytest.mark.parametrize("name", FLEETS)
def test_the_smallest_budget_is_that_of_the_best_way_of_stacking(name, kind, tmp_path):
    fleet, path = FLEETS[name](), tmp_path / "bank.lotr.safetensors"
    least = 1800 if kind == "bytes" else 9
    floors = {way: floor(fleet, path, kind, least, stack=way) for way in (*STACKS, "auto")}
    assert floors["auto"] <= 1.01 * min(floors.values()) < 0.9 * max(floors.values())
    for way, told in floors.items():
        made = make_bank(fleet, path, lt.Budget(**{kind: told}), stack=way, force=True)
        taken = path.stat().st_size if kind == "bytes" else made.parameters_after
        assert taken <= told
        assert made.met
        assert min(made.errors.values()) < 1
        path.unlink()
        assert floor(fleet, path, kind, told - 1, stack=way) == told


def test_what_heads_and_configurations_take_is_refused_at_once(tmp_path):
    fleet = fleets.fleet(2, extras={fleets.HEAD: fleets.head(0, (50, 17))})
    with pytest.raises(OptionError, match=r"heads and configurations alone take \d,\d+ bytes"):
        make_bank(fleet, tmp_path / "b.safetensors", lt.Budget(bytes=3500))


def test_bits_fit_where_numbers_do_not(tmp_path):
    fleet, path = fleets.strangers(2), tmp_path / "bank.lotr.safetensors"
    told = floor(fleet, path, "bytes", 1800)
    least = floor(fleet, path, "bytes", 1200, coding="auto")
    assert least < told
    for size in (told - 20, least):
        made = make_bank(fleet, path, lt.Budget(bytes=size), coding="auto")
        assert path.stat().st_size <= size
        assert all(part.is_coded for _, part in made.bank.parts)
        assert min(made.errors.values()) < 1
        path.unlink()
    message = (
        f"the smallest bank found, in bits, takes {least:,} bytes; the budget is {least - 1:,}"
    )
    with pytest.raises(OptionError, match=message):
        make_bank(fleet, path, lt.Budget(bytes=least - 1), coding="auto")
