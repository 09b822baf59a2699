"""`lotr convert --coding auto`: what it says, and that what it says is in the file."""

import re

from tests.cli.conftest import of_json
from tests.cli.runs import gap, save, stranger

FILE = "small.lotr.safetensors"
ASKED = ("--rel-error", "10%", "--coding", "auto", "-o", FILE)


def test_the_file_is_smaller_and_said_to_be_coded(lotr, tmp_path):
    source = stranger(tmp_path / "adapter", 3)
    plain = of_json(lotr("convert", source, "--rel-error", "10%", "-o", FILE, "--json"))
    record = of_json(lotr("convert", source, *ASKED, "--json", "--force"))
    assert record["coded"] == [group["name"] for group in record["groups"]]
    assert plain["coded"] == []
    assert record["bytes_after"] == (tmp_path / FILE).stat().st_size < plain["bytes_after"]
    assert sum(g["bytes_after"] for g in record["groups"]) == record["bytes_updates_after"]
    status, out, err = lotr("convert", source, *ASKED, "--force")
    assert (status, err) == (0, "")
    assert re.search(r"^Updates +.*, coded$", out, re.MULTILINE)
    assert len(re.findall(r"^ \S+ +coded ", out, re.MULTILINE)) == len(record["groups"])
    status, out, _ = lotr("inspect", FILE)
    assert re.search(r"^Format +LoTR file: truncated, coded, ", out, re.MULTILINE)
    assert lotr("export", FILE, "-o", "lora", "-q") == (0, "", "")
    assert abs(gap(tmp_path / "lora", source) - record["relative_error"]) < 1e-6


def test_a_damaged_file_is_refused(lotr, tmp_path):
    source = stranger(tmp_path / "adapter", 3)
    assert lotr("convert", source, *ASKED, "-q")[0] == 0
    raw = bytearray((tmp_path / FILE).read_bytes())
    raw[-1] ^= 1
    (tmp_path / FILE).write_bytes(raw)
    status, out, err = lotr("export", FILE, "-o", "lora")
    assert (status, out) == (1, "")
    assert "damaged" in err
    assert err.count("\n") == 1


def test_a_folder_to_train_on_holds_numbers(lotr, tmp_path):
    source = save(tmp_path / "adapter", {})
    status, _, err = lotr("convert", source, *ASKED, "--to", "lotr-peft")
    assert (status, err.count("\n")) == (2, 1)
    assert "--coding is for a LoTR file" in err
