"""A size in bytes is that of the file: what fits is written, and what is refused cannot fit."""

import re

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.errors import OptionError
from tests.cli.runs import save, stranger

PLACES = ("auto", "kind", "shape")


def tiny(folder):
    """Three layers of two kinds and one shape, whose header takes more than their numbers."""
    rng = np.random.default_rng(3)
    factors = {
        f"layers.{layer}.{kind}": (rng.standard_normal((12, 4)), rng.standard_normal((4, 12)))
        for layer in range(3)
        for kind in ("q_proj", "v_proj")
    }
    return save(folder, factors)


@pytest.fixture(params=["tiny", "stranger"])
def adapter(request, tmp_path):
    """An adapter, of which a file has more header than numbers, or less."""
    folder = tmp_path / "adapter"
    return lt.load_adapter(tiny(folder) if request.param == "tiny" else stranger(folder, 1))


def written(adapter, path, size, **options):
    """The file of a size, and its conversion."""
    made = lt.convert_adapter(adapter, size, **{"format": "auto", "group_by": "auto", **options})
    lt.save_adapter(made.adapter, path, force=True)
    return made, path.stat().st_size


def told(adapter, unit="bytes", **options):
    """The smallest size, as the refusal of a smaller one tells it."""
    with pytest.raises(OptionError, match="the smallest result, ") as caught:
        lt.convert_adapter(
            adapter, lt.Budget(**{unit: 1}), **{"format": "auto", "group_by": "auto", **options}
        )
    (found,) = re.findall(r"takes ([\d,]+) (?:bytes|parameters)", str(caught.value))
    return int(found.replace(",", ""))


@pytest.mark.parametrize("coding", ["none", "auto"])
@pytest.mark.parametrize("place", PLACES)
def test_the_smallest_size_that_is_told_is_written_and_no_smaller(adapter, coding, place, tmp_path):
    path, options = tmp_path / "a.safetensors", {"group_by": place, "coding": coding}
    least = told(adapter, **options)
    made, size = written(adapter, path, lt.Budget(bytes=least), **options)
    assert size <= least
    assert made.met
    assert made.relative_error < 1
    with pytest.raises(OptionError, match=f"takes {least:,} bytes"):
        lt.convert_adapter(adapter, lt.Budget(bytes=least - 1), format="auto", **options)


def test_the_best_way_to_group_has_the_smallest_size(adapter):
    for unit in ("bytes", "params"):
        each = {place: told(adapter, unit, group_by=place) for place in PLACES}
        assert each["auto"] <= 1.01 * min(each.values())
    assert told(adapter, coding="auto") < told(adapter)


def test_what_is_written_fills_the_size_and_no_form_loses_less(adapter, tmp_path):
    path, least = tmp_path / "a.safetensors", told(adapter)
    whole = written(adapter, path, lt.RelativeError(0))[1]
    for share in (0.15, 0.6):
        size = int(least + share * (whole - least))
        made, taken = written(adapter, path, lt.Budget(bytes=size))
        assert taken <= size
        assert made.bound is not None
        assert made.bound <= made.relative_error * (1 + 1e-9)
        for format in ("truncated", "lotr", "lotr-low-rank", "shared-in"):
            for place in ("kind", "shape"):
                try:
                    options = {"format": format, "group_by": place}
                    other, taken = written(adapter, path, lt.Budget(bytes=size), **options)
                except OptionError:
                    continue
                assert taken <= size
                assert made.relative_error <= other.relative_error * 1.02, (format, place)


def test_what_is_kept_counts(adapter):
    whole = told(adapter, keep="v_proj")
    with pytest.raises(OptionError, match=r"[\d,]+ of them for what is kept as it is and the head"):
        lt.convert_adapter(
            adapter, lt.Budget(bytes=whole - 1), format="auto", group_by="auto", keep="v_proj"
        )
    with pytest.raises(OptionError, match=r"[\d,]+ of them for what is kept as it is; the budget"):
        lt.convert_adapter(adapter, lt.Budget(1), format="auto", group_by="auto", keep="v_proj")


@pytest.mark.parametrize("unit", ["bytes", "params"])
def test_an_analysis_tells_what_is_written(adapter, unit, tmp_path):
    least = told(adapter, unit)
    for size in (least, least + 100, 4000):
        rule = lt.Budget(**{unit: size})
        made, size = written(adapter, tmp_path / "a.safetensors", rule)
        found = lt.analyze_adapters([adapter], rule, group_by="auto")
        assert found.written == size
        assert found.relative_error == pytest.approx(made.relative_error, rel=1e-9)
    with pytest.raises(OptionError, match=f"takes {least:,} "):
        lt.analyze_adapters([adapter], lt.Budget(**{unit: least - 1}), group_by="auto")
