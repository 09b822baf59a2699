"""Ten times as many adapters take no more memory, and are read one at a time."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from benchmarks.fleets import FleetShapes, write_fleet

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="peaks and open files are read from /proc"
)

SHAPES = FleetShapes(
    "tiny", 2, "base_model.model.layers.{}", {"q_proj": (512, 384), "v_proj": (384, 512)}
)
FEW, MANY = 30, 300  # the few are held whole, the many pass by

CONVERT = """
import json, os, sys
from collections.abc import Mapping
from pathlib import Path
from lotr_tn import RelativeError, load_adapter
from lotr_tn.banks.making.conversion import make_bank

fleet, count, bank = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


class Asked(Mapping):
    "Adapters by name, and how often each was asked for."

    def __init__(self, folders):
        self.folders = {folder.name: folder for folder in folders}
        self.asked = []

    def __getitem__(self, name):
        self.asked.append(name)
        return load_adapter(self.folders[name])

    def __iter__(self):
        return iter(self.folders)

    def __len__(self):
        return len(self.folders)


def inputs():
    "How many files of the fleet are open or mapped."
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the folder's own
            pass
    mapped = {line.split()[-1] for line in open("/proc/self/maps")}
    return sum(str(fleet) in place for place in (*links, *mapped))


adapters, most = Asked(sorted(fleet.iterdir())[:count]), 0


def look(name):
    global most
    most = max(most, inputs())


done = make_bank(adapters, bank, RelativeError(0.05), progress=look)
peak = next(
    1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")
)
record = {
    "peak": peak,
    "most": most,
    "asked": adapters.asked,
    "met": bool(done.met),
    "share": done.bank.nbytes / done.bytes_before,
}
print(json.dumps(record))
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What converting few and many adapters of one fleet took, each in a process of its own."""
    folder = tmp_path_factory.mktemp("memory")
    write_fleet(folder / "fleet", MANY, shapes=SHAPES, rank=4, shared=16, noise=0.01)
    found = []
    for count in (FEW, MANY):
        bank = folder / f"{count}.lotr.safetensors"
        done = subprocess.run(
            [sys.executable, "-c", CONVERT, str(folder / "fleet"), str(count), str(bank)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    return found


def test_the_peak_does_not_grow_with_the_number_of_adapters(records):
    few, many = (record["peak"] for record in records)
    assert many <= 1.1 * few, f"{few / 1e6:.0f} MB for {FEW}, {many / 1e6:.0f} MB for {MANY}"


def test_every_adapter_is_asked_for_once(records):
    for record, count in zip(records, (FEW, MANY), strict=True):
        assert len(record["asked"]) == count
        assert set(Counter(record["asked"]).values()) == {1}


def test_inputs_are_open_one_at_a_time(records):
    """At most the one that was read last, whose arrays may not be released yet."""
    for record in records:
        assert record["most"] <= 1


def test_both_are_real_conversions(records):
    assert all(record["met"] for record in records)
    assert all(record["share"] < 0.3 for record in records)
    assert records[1]["share"] < records[0]["share"], "more adapters share the same bases"
