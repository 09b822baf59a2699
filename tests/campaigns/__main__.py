"""Campaigns by hand: `python -m tests.campaigns --minutes 30`.

`--only readers` runs one campaign, and `--only readers --case 123` one case of it again.
"""

import argparse
import sys
import warnings

from tests.campaigns import inputs
from tests.campaigns.campaign import Case, DefectError, Tally, run, run_one
from tests.campaigns.faults import faults
from tests.campaigns.flips import flips
from tests.campaigns.numbers import numbers
from tests.campaigns.readers import readers

CAMPAIGNS: dict[str, Case] = {
    "readers": readers,
    "flips": flips,
    "numbers": numbers,
    "faults": faults,
}


def main() -> int:
    """Run the campaigns; the exit status says whether anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for all campaigns together")
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", choices=CAMPAIGNS, help="one campaign")
    parser.add_argument("--case", type=int, help="one case again, by its number")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    inputs.sound()
    chosen = {asked.only: CAMPAIGNS[asked.only]} if asked.only else CAMPAIGNS
    if asked.case is not None:
        return _again(chosen, asked.case)
    found = {
        name: run(case, asked.seed, seconds=60 * asked.minutes / len(chosen))
        for name, case in chosen.items()
    }
    for name, tally in found.items():
        _show(name, tally)
    return int(any(tally.defects for tally in found.values()))


def _again(chosen: dict[str, Case], number: int) -> int:
    status = 0
    for name, case in chosen.items():
        try:
            print(f"{name} {number}: {run_one(case, number)}")
        except DefectError as defect:
            status = 1
            print(f"{name} {number}: {defect}")
    return status


def _show(name: str, tally: Tally) -> None:
    outcomes = ", ".join(f"{count:,} {word}" for word, count in tally.outcomes.most_common())
    print(f"{name}: {tally.cases:,} cases: {outcomes}; {len(tally.defects)} defects")
    for what, (count, first) in tally.defects.items():
        print(f"  {count} x, first in case {first}: {what}")


if __name__ == "__main__":
    sys.exit(main())
