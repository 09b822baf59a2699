"""What is said of banks, in 80 columns, and what goes into JSON."""

import io
import json

import pytest
from rich.console import Console

import lotr_tn as lt
from lotr_tn.banks import drop_adapters, load_bank, make_bank
from lotr_tn.doors.sources import named_adapters
from lotr_tn.report.bank import (
    adapter_table,
    bank_conversion_record,
    bank_conversion_text,
    bank_question_text,
    bank_record,
    bank_text,
    verification_text,
)
from lotr_tn.report.bank_changes import (
    appending_text,
    compacting_text,
    dropping_record,
    dropping_text,
)
from lotr_tn.report.bank_export import bank_export_text, bank_exports_text
from tests.cli import runs


def shown(*parts) -> str:
    """What a terminal of 80 columns shows."""
    file = io.StringIO()
    console = Console(file=file, width=80, highlight=False)
    for part in parts:
        console.print(part)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    return "\n".join(line.rstrip() for line in lines)


def test_updates_and_all_else_of_an_adapter_are_told_apart():
    adapters = [adapter("plain"), adapter("head", own=9_001_500, other=9_000_000)]
    text = shown(*adapter_table(adapters, show_all=True))
    head, _, *rows = (line.split() for line in text.split("\n") if line.strip())
    assert head[-3:] == ["Own", "size", "Other"]
    rows = {row[0]: row[3:] for row in rows}
    assert rows == {"plain": ["1.5", "kB", "0", "bytes"], "head": ["1.5", "kB", "9", "MB"]}


def adapter(name="a", error=0.04, *, bound=None, cluster=0, own=1500, other=0):
    return {
        "name": name,
        "relative_error": error,
        "bound": error if bound is None else bound,
        "own_bytes": own,
        "other_bytes": other,
        "modules": 12,
        "formats": ["lotr"],
        "dtype": "float32",
        "params": 100,
        "cluster": cluster,
    }


def conversion(**changed):
    way = {"stacking": "adapters", "stacks": 40, "bytes": 291_000, "note": None}
    return {
        "relative_error": 0.031,
        "worst_error": 0.04,
        "worst_bound": 0.04,
        "asked": {"relative_error": 0.05, "each": True},
        "adapters": [adapter("a"), adapter("b", 0.01)],
        "params_before": 327_680,
        "params_after": 72_772,
        "bytes_before": 1_350_000,
        "bytes_after": 353_000,
        "bytes_updates_before": 1_200_000,
        "bytes_stacks": 291_000,
        "bytes_separate": 1_040_000,
        "stacking": "adapters",
        "stackings": [way, way | {"stacking": "layers", "stacks": 1, "bytes": 687_000}],
        "routes": {"0.q": "whole", "1.q": "whole"},
        "formats": {"lotr": 80},
        "contents": {"configurations": 1, "tensors": 0, "keys": [], "bytes": 80},
        "dtype": "float32",
        "coded": [],
        "met": True,
        "seconds": 0.31,
        "destination": "history.lotr.safetensors",
    } | changed


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"relative_error": 0.05, "each": True}, "at most 0.05 for each adapter"),
        ({"relative_error": 0.05, "each": False}, "at most 0.05 for all adapters together"),
        ({"relative_error": 0.0, "each": True}, "exact, but for rounding"),
        ({"params": 12345, "bytes": None, "each": True}, "at most 12,345 parameters"),
        ({"params": None, "bytes": 12345, "each": True}, "at most 12,345 bytes"),
        ({"params": None, "bytes": "5MiB", "each": True}, "at most 5MiB"),
        ({"ranks": [4, 8], "each": True}, "ranks 4,8"),
    ],
)
def test_what_was_asked(asked, text):
    assert bank_question_text(asked) == text


def test_a_conversion():
    text = shown(bank_conversion_text(conversion(), show_all=False))
    assert text.endswith(
        """
Relative error  0.04 at worst, 0.031 of all together, measured
Asked           at most 0.05 for each adapter
Parameters      327,680 -> 72,772 (0.22x)
Stacked by      adapters (40 stacks, 291 kB)
Other ways      layers (1 stack, 687 kB)
Each alone      1.04 MB at this error, ranks cut: 3.57x as much
Files           1.35 MB -> 353 kB (0.26x), float32
Written         history.lotr.safetensors in 0.3 s"""
    )


def test_the_way_chosen_comes_first():
    ways = [
        {"stacking": "adapters", "stacks": 40, "bytes": 900, "note": None},
        {"stacking": "layers", "stacks": 5, "bytes": 500, "note": None},
        {"stacking": "all", "stacks": 3, "bytes": None, "note": "not measured: 5,000 rank terms"},
    ]
    text = shown(
        bank_conversion_text(conversion(stacking="layers", stackings=ways), show_all=False)
    )
    assert "Stacked by      layers (5 stacks, 500 bytes)\n" in text
    assert "Other ways      adapters (40 stacks, 900 bytes), all (3 stacks, not measured)" in text


def test_lines_that_are_not_always_there():
    plain = shown(bank_conversion_text(conversion(bytes_separate=None), show_all=False))
    for word in ("Each alone", "Bases", "Clusters", "At most", "hardly", "Carried"):
        assert word not in plain
    routes = {"0.q": "whole", "1.q": "updated", "2.q": "apart", "3.q": "updated"}
    text = shown(bank_conversion_text(conversion(routes=routes), show_all=False))
    assert "Bases           2 of 4 stacks by route updated\n" in text
    three = [adapter("a"), adapter("b", cluster=1), adapter("c", cluster=1)]
    text = shown(bank_conversion_text(conversion(adapters=three), show_all=False))
    assert "Clusters        2 with bases of their own, of 1, 2 adapters" in text
    heads = {"configurations": 1, "tensors": 4, "keys": ["head"], "bytes": 9_400_000}
    text = shown(bank_conversion_text(conversion(contents=heads), show_all=False))
    assert "Updates         1.2 MB -> 291 kB (0.24x)\nCarried along   1 configuration and" in text
    assert "4 other tensors, 9.4 MB, unchanged\nFiles" in text


@pytest.mark.parametrize("formats", [{"truncated": 4}, {"lora": 4}, {"truncated": 1, "lora": 3}])
def test_adapters_that_share_nothing(formats):
    text = shown(bank_conversion_text(conversion(formats=formats), show_all=False))
    assert "These adapters hardly share anything: every layer keeps" in text
    mixed = formats | {"lotr": 1}
    text = shown(bank_conversion_text(conversion(formats=mixed), show_all=False))
    assert "hardly" not in text


def test_tables_of_adapters():
    few = [adapter("b", 0.01), adapter("a", 0.02)]
    text = shown(*adapter_table(few, show_all=False))
    assert text.index(" b ") < text.index(" a ")
    assert "At most" not in text
    moved = [adapter("b", 0.01, bound=0.0100000001), adapter("a", 0.02, bound=0.03)]
    assert "At most" in shown(*adapter_table(moved, show_all=False))
    assert "At most" not in shown(*adapter_table(moved[:1], show_all=False))
    many = [adapter(f"n{at:02}", at / 100) for at in range(15)]
    worst = shown(*adapter_table(many, show_all=False))
    assert "The 12 largest errors; --all shows 3 more." in worst
    assert worst.index("n14") < worst.index("n03")
    assert "n02" not in worst
    first = shown(*adapter_table(many, show_all=False, worst=False))
    assert "The 12 first adapters; --all shows 3 more." in first
    assert first.index("n00") < first.index("n11")
    assert "n12" not in first
    assert "n14" in shown(*adapter_table(many, show_all=True))


def test_names_are_not_markup():
    text = shown(*adapter_table([adapter("[bold]x[/bold]"), adapter("y" * 120)], show_all=True))
    assert "[bold]x[/bold]" in text
    assert "".join(text.split()).count("y") == 120


def test_exports():
    one = {
        "adapter": "a",
        "relative_error": 0.04,
        "bound": 0.04,
        "modules": {"x": 4, "y": 4},
        "rank": 4,
        "dtype": "float32",
        "params": 1000,
        "bytes_before": 6400,
        "bytes_after": 338_000,
        "seconds": 0.1,
        "destination": "out/a",
    }
    text = shown(bank_export_text(one, uniform=True))
    assert "Relative error  0.04, measured when it was stored\n" in text
    assert "Modules         2, rank 4, the same for all, float32" in text
    assert "338 kB, of which the bank holds 6.4 kB" in text
    text = shown(bank_export_text(one | {"bound": 0.05}, uniform=False))
    assert "measured when it was stored; by now at most 0.05" in text
    assert "each its own" in text
    record = {
        "adapters": [one, one | {"adapter": "b/c", "destination": "out/b-c"}],
        "bytes_before": 100_000,
        "bytes_after": 200_000,
        "seconds": 0.2,
        "destination": "out",
    }
    text = shown(bank_exports_text(record))
    assert " b/c in b-c " in text
    assert " a in " not in text
    assert "Files           100 kB -> 200 kB (2.00x)" in text
    text = shown(bank_exports_text(record | {"adapters": [one] * 15}))
    assert "and 3 more." in text


def test_changes():
    change = {
        "adapters_before": 4,
        "adapters_after": 6,
        "bytes_before": 1000,
        "bytes_after": 3000,
        "dtype": "float32",
        "seconds": 0.1,
        "destination": "h.safetensors",
    }
    new = {"adapters": [adapter("a"), adapter("b")], "worst_error": 0.04, "asked": 0.05}
    new |= {"shared": [0.97, 0.02]}
    text = shown(appending_text(new | change | {"new_directions": 0}, show_all=False))
    assert "New directions  none: the bases hold what the new adapters need\n" in text
    assert "File            1 kB -> 3 kB (3.00x), 1 kB an adapter\n" in text
    text = shown(appending_text(new | change | {"new_directions": 1234}, show_all=False))
    assert "New directions  1,234, added to the bases\n" in text
    assert "Shared          2% to 97% of what is new lay in the bank's bases\n" in text
    assert "b: almost nothing shared with this bank" in text
    compacted = new | change | {"worst_bound": 0.045}
    text = shown(compacting_text(compacted, show_all=False))
    assert "at most 0.045 for each adapter, over all changes" in text
    assert "Changed         h.safetensors in 0.1 s" in text
    text = shown(compacting_text(compacted | {"bytes_after": 1000}, show_all=False))
    assert "File            1 kB, unchanged: nothing smaller was found\n" in text
    assert "Looked at       h.safetensors in 0.1 s" in text
    dropped = change | {"dropped": ["x", "y"], "destination": "my bank.safetensors"}
    text = shown(dropping_text(dropped))
    assert "Dropped         x, y\n" in text
    assert "lotr bank compact 'my bank.safetensors'" in text


def test_records_of_a_bank_are_json(tmp_path):
    runs.history(tmp_path / "run", 500, 1000, 2000)
    path = tmp_path / "bank.safetensors"
    made = make_bank(named_adapters([tmp_path / "run"]), path, lt.RelativeError(0.1))
    record = bank_conversion_record(made, path, (9000, 8000), 0.5)
    assert json.loads(json.dumps(record)) == record
    assert record["bytes_separate"] == made.bytes_separate
    assert record["params_after"] * 2 == record["bytes_stacks"]
    bank = load_bank(path)
    seen = bank_record(bank, path, 8000)
    assert json.loads(json.dumps(seen)) == seen
    assert seen["adapters"] == record["adapters"]
    text = shown(bank_text(seen, {}, show_all=False))
    assert "Base model      not named" in text
    verified = shown(verification_text(seen | {"verified": 1234}))
    assert "Verified        all 1,234 tensors are as written" in verified
    assert f"bank of {len(bank)} adapters" in text
    edited = drop_adapters(path, ["checkpoint-500", "checkpoint-500"])
    dropped = dropping_record(edited, path, ["checkpoint-500", "checkpoint-500"], 0.1)
    assert json.loads(json.dumps(dropped)) == dropped
    assert (dropped["adapters_before"], dropped["adapters_after"]) == (3, 2)
