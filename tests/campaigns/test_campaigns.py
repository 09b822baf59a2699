"""A little of every campaign, and proof that campaigns find what they look for."""

import time

import pytest

from tests.campaigns import campaign, flips, inputs
from tests.campaigns.__main__ import CAMPAIGNS
from tests.campaigns.campaign import DefectError, run, run_one

CASES = {"readers": 60, "flips": 60, "numbers": 60, "faults": 6}


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_nothing_is_found(name):
    inputs.sound()
    tally = run(CAMPAIGNS[name], 0, cases=CASES[name])
    assert tally.cases == CASES[name]
    assert tally.defects == {}
    assert sum(tally.outcomes.values()) == tally.cases
    assert len(tally.outcomes) > 1, "every case ended alike"


def test_a_defect_is_counted_with_its_first_case():
    def case(rng, folder):
        if rng.random() < 0.5:
            raise DefectError(f"wrong by {rng.random()}")
        return "right"

    tally = run(case, 7, cases=40)
    ((what, (count, first)),) = tally.defects.items()
    assert what.startswith("wrong by #")
    assert 0 < count < 40
    with pytest.raises(DefectError, match="wrong by"):
        run_one(case, first)


def busy():
    while time.process_time():
        pass


def test_what_never_ends_is_a_defect(monkeypatch):
    monkeypatch.setattr(campaign, "LIMIT", 0.05)
    with pytest.raises(DefectError, match="not ended after"):
        run_one(lambda rng, folder: busy(), 0)


def test_numbers_that_change_in_silence_are_found(monkeypatch):
    """A reader that compares nothing with its digest."""
    monkeypatch.setattr("lotr_tn.files.container._compared", lambda path, name, tensor, *_: tensor)
    tally = run(flips.flips, 0, cases=80)
    assert any("changes numbers in silence" in what for what in tally.defects)
