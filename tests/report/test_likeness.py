"""The record, the text and the figure of many adapters."""

import io
import itertools
import json
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.text import Text
from rich.console import Console

from lotr_tn.errors import BackendError, CheckpointError, OptionError
from lotr_tn.inspection.likeness import Likeness
from lotr_tn.report.likeness import likeness_record, likeness_text, two_digits
from lotr_tn.report.plots.likeness import draw_likeness, save_likeness_plot
from lotr_tn.report.plots.style import STYLE

MATRICES = ("cosine", "overlap_out", "overlap_in", "chance_out", "chance_in")
SIZES = (2, 3, 4, 5, 12, 13, 40, 41, 101)
SHORT, LONG = "r{}/s{}", "a/long/path/of/run-{}/with/many/parts/step-{}"
FIGURES = [*((count, LONG) for count in SIZES), *((count, SHORT) for count in (2, 12, 13, 41, 101))]
"""Names of every length with panels of the least, the middle and the largest size."""


def likeness(count: int, *, zero: bool = False, name: str = "run-{}/step-{}") -> Likeness:
    """Runs of four checkpoints each; the last adapter may be zero."""
    rng = np.random.default_rng(count)
    run = np.arange(count) // 4
    vectors = 3 * np.eye(count)[run] + rng.uniform(-0.5, 0.5, (count, count))
    cosine = vectors @ vectors.T
    cosine /= np.sqrt(np.outer(np.diag(cosine), np.diag(cosine)))
    np.fill_diagonal(cosine, 1.0)
    found = {"cosine": cosine, "overlap_out": cosine**2, "overlap_in": np.abs(cosine)}
    found |= {"chance_out": np.full_like(cosine, 0.0625), "chance_in": np.full_like(cosine, 0.125)}
    common = np.full((count, count), 3)
    norms = rng.uniform(0.1, 20, count)
    if zero:
        norms[-1] = 0
        for matrix in found.values():
            matrix[-1] = matrix[:, -1] = np.nan
        common[-1] = common[:, -1] = 0
    names = tuple(name.format(i // 4, i) for i in range(count))
    return Likeness(names=names, norms=norms, common=common, modules=("a", "b", "c"), **found)


def text_of(found: Likeness, *, show_all: bool = False, written: tuple[Path, ...] = ()) -> str:
    console = Console(width=80, highlight=False, file=io.StringIO())
    console.print(likeness_text(likeness_record(found), written, show_all=show_all))
    return console.file.getvalue()  # type: ignore[attr-defined]


def options_by_size() -> Iterator[tuple[int, ...]]:
    """Every size with both values of each option, and every two options in all four ways."""
    for place, size in enumerate(SIZES):
        chosen = [place % 4 == option for option in range(3)]
        yield size, *chosen
        yield size, *(not option for option in chosen)


class TestRecord:
    def test_it_is_json_with_none_for_nan(self) -> None:
        found = likeness(5, zero=True)
        record = json.loads(json.dumps(likeness_record(found), allow_nan=False))
        assert set(record) == {
            "adapters", "modules", *MATRICES, "common_modules", "chance", "order", "groups",
            "group_cosine",
        }  # fmt: skip
        assert [a["name"] for a in record["adapters"]] == list(found.names)
        assert [a["norm"] for a in record["adapters"]] == found.norms.tolist()
        for key in MATRICES:
            matrix = np.array(record[key], dtype=float)
            np.testing.assert_array_equal(matrix, getattr(found, key), err_msg=key)
        assert record["cosine"][4] == [None] * 5
        assert record["common_modules"] == found.common.tolist()
        assert record["chance"] == [0.0625, 0.125]
        assert record["modules"] == ["a", "b", "c"]

    def test_order_and_groups_are_names(self) -> None:
        found = likeness(11)
        record = likeness_record(found)
        assert sorted(record["order"]) == sorted(found.names)
        assert list(itertools.chain(*record["groups"])) == record["order"]
        assert record["group_cosine"] == 0.5
        assert [{name[:5] for name in group} for group in record["groups"]] in (
            [{"run-0"}, {"run-1"}, {"run-2"}],
            [{"run-1"}, {"run-0"}, {"run-2"}],
            [{"run-0"}, {"run-2"}, {"run-1"}],
        )


class TestText:
    @pytest.mark.parametrize(("count", "show_all", "zero", "long"), [*options_by_size()])
    def test_it_fits_80_columns(self, count, show_all, zero, long) -> None:
        name = LONG if long else SHORT
        text = text_of(likeness(count, zero=zero, name=name), show_all=show_all)
        assert max(map(len, text.splitlines())) <= 80
        assert "nan" not in text
        assert "None" not in text

    def test_the_matrix_is_in_the_order_of_the_tree(self) -> None:
        found = likeness(12)
        text = text_of(found)
        for number, place in enumerate(found.order, 1):
            row = re.search(rf"^ +{number}((?: +-?[01]\.\d\d)+) *$", text, re.MULTILINE)
            assert row is not None
            assert row[1].split() == [two_digits(found.cosine[place, i]) for i in found.order]
            assert re.search(rf"^ +{number} +{found.names[place]} ", text, re.MULTILINE)
        assert "Overlaps" not in text

    def test_all_shows_both_overlaps(self) -> None:
        found = likeness(5)
        text = text_of(found, show_all=True)
        below = text[text.index("Overlaps: outputs below the diagonal, inputs above") :]
        for i, place in enumerate(found.order):
            row = re.search(rf"^ +{i + 1}((?: +[01]\.\d\d)+) *$", below, re.MULTILINE)
            assert row is not None
            assert row[1].split() == [
                two_digits((found.overlap_out if j <= i else found.overlap_in)[place, other])
                for j, other in enumerate(found.order)
            ]

    def test_many_are_summarised_unless_all_are_asked_for(self) -> None:
        found = likeness(40)
        short, long = text_of(found), text_of(found, show_all=True)
        assert "--all shows all cosines and overlaps" in short
        assert "--all" not in long
        assert "The 6 closest of 780 pairs" in short
        assert "The 6 of the lowest cosine" in short
        assert "Groups in which every two have a cosine of at least 0.5" in short
        assert len(re.findall(r"^ +4 +run-\d+/step-\d+ … run-\d+/step-\d+ *$", short, re.M)) == 8
        assert "2 smaller groups are not shown." in short
        assert "Cosines" not in short
        assert all(name in long for name in found.names)
        assert len(short.splitlines()) < 45

    def test_pairs_are_sorted(self) -> None:
        found = likeness(14)
        text = text_of(found)
        rows = re.findall(r"^ (run-\S+) +(run-\S+) +(-?[01]\.\d{4}) ", text, re.MULTILINE)
        upper = found.cosine[np.triu_indices(14, 1)]
        wanted = [*np.sort(upper)[::-1][:6], *np.sort(upper)[:6]]
        assert [cosine for _, _, cosine in rows] == [f"{value:.4f}" for value in wanted]
        for a, b, cosine in rows:
            pair = found.names.index(a), found.names.index(b)
            assert f"{found.cosine[pair]:.4f}" == cosine

    def test_a_zero_adapter_is_said(self) -> None:
        text = text_of(likeness(4, zero=True))
        assert "Zero            run-0/step-3: no angle, no subspace" in text
        assert re.search(r"run-0/step-3 +0 +- *$", text, re.MULTILINE)
        assert re.search(r"^ +\d( +-){4} *$", text, re.MULTILINE)
        assert "all of the same 3 modules" in text

    def test_modules_that_are_lacking_are_said(self) -> None:
        found = likeness(4)
        found.common[0] = found.common[:, 0] = 2
        assert "2 to 3 of 3 modules; one that is lacking counts as zero" in text_of(found)
        found.common[:] = 2
        assert "each 2 of 3 modules; one that is lacking" in text_of(found)

    def test_groups(self) -> None:
        assert "Every two have a cosine of at least 0.5." in text_of(likeness(4))
        numbers = re.search(r"at least 0.5:\n(.*)\n", text_of(likeness(9)))
        assert numbers is not None
        assert sorted(numbers[1].split(", ")) == ["1-4", "5-8", "9"]
        found = likeness(3)
        found.cosine[~np.eye(3, dtype=bool)] = 0.2
        assert "No two have a cosine of at least 0.5." in text_of(found)
        assert "1 is in no group." in text_of(likeness(17))

    def test_nothing_to_show(self) -> None:
        found = likeness(3)
        for key in MATRICES:
            getattr(found, key)[:] = np.nan
        found.norms[:] = 0
        text = text_of(found)
        assert re.search(r"^Cosine +-$", text, re.MULTILINE)
        assert "and 2 more: no angle" in text

    def test_names_are_no_markup_and_files_are_told(self) -> None:
        text = text_of(likeness(3, name="[red]{}-{}\x07"), written=(Path("a.svg"),))
        assert "[red]0-2?" in text
        assert text.rstrip().endswith("Written         a.svg")

    @pytest.mark.parametrize(
        ("value", "text"),
        [(1.0, "1.00"), (-0.004, "0.00"), (-0.006, "-0.01"), (0.0, "0.00"), (None, "-")],
    )
    def test_two_digits(self, value, text) -> None:
        assert two_digits(value) == text


def drawn(found: Likeness) -> Figure:
    with context(STYLE, after_reset=True):
        return draw_likeness(likeness_record(found))


def texts(figure: Figure) -> list[Text]:
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text()]  # type: ignore[union-attr]


class TestFigure:
    def test_panels_hold_the_matrices_in_the_order_of_the_tree(self) -> None:
        found = likeness(12, zero=True)
        figure = drawn(found)
        places = np.ix_(found.order, found.order)
        for ax, key, low in zip(figure.axes, MATRICES, (-1, 0, 0), strict=False):
            (image,) = ax.images
            matrix = getattr(found, key)[places]
            np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), matrix)
            assert image.get_clim() == (low, 1)
            written = [text.get_text() for text in ax.texts]
            wanted = ["-" if np.isnan(x) else two_digits(x) for x in matrix.ravel()]
            assert written == wanted
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert labels == [f"{found.names[p]}  {i}" for i, p in enumerate(found.order, 1)]
        assert "chance 0.062" in figure.axes[1].get_title(loc="left")
        assert any(text.get_text().startswith("grey: ") for text in texts(figure))
        assert not any(t.get_text().startswith("grey: ") for t in texts(drawn(likeness(2))))

    @pytest.mark.parametrize(("count", "name"), FIGURES)
    def test_everything_can_be_read(self, count, name) -> None:
        figure = drawn(likeness(count, name=name, zero=count > 4))
        figure.draw_without_rendering()
        renderer = FigureCanvasAgg(figure).get_renderer()
        width, height = figure.get_size_inches() * figure.dpi
        for text in texts(figure):
            assert text.get_fontsize() >= 7
            box = text.get_window_extent(renderer)
            assert box.x0 >= 0, text
            assert box.x1 <= width, text
            assert box.y0 >= 0, text
            assert box.y1 <= height, text
        panels = figure.axes[:3]
        for axis in [a for ax in figure.axes for a in (ax.xaxis, ax.yaxis)]:
            boxes = [t.get_window_extent(renderer) for t in axis.get_ticklabels() if t.get_text()]
            for one, other in itertools.pairwise(boxes):
                assert not one.padded(-1).overlaps(other.padded(-1))
        shapes = [ax.get_window_extent(renderer) for ax in panels]
        assert all(abs(box.width - box.height) < 1 for box in shapes)
        titles = [ax._left_title.get_window_extent(renderer) for ax in panels]  # type: ignore[attr-defined]
        names = [t.get_window_extent(renderer) for ax in panels for t in ax.get_yticklabels()]
        for one, other in itertools.product([*titles, *names], shapes):
            assert not one.overlaps(other)
        for one, other in itertools.combinations(titles, 2):
            assert not one.overlaps(other)
        assert bool(panels[0].texts) == (count <= 12)

    def test_values_stand_out_from_their_cells(self) -> None:
        figure = drawn(likeness(12))
        for ax in figure.axes[:3]:
            (image,) = ax.images
            values = np.asarray(image.get_array()).ravel()
            for value, text in zip(values, ax.texts, strict=True):
                light = luminance(image.cmap(image.norm(value)))
                ink = 1.0 if text.get_color() == "white" else 0.0
                contrast = (max(light, ink) + 0.05) / (min(light, ink) + 0.05)
                assert contrast > 3.9, (value, contrast)

    @pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
    def test_files(self, tmp_path: Path, ending: str) -> None:
        record = likeness_record(likeness(3))
        for name in ("a", "b"):
            save_likeness_plot(record, tmp_path / f"{name}.{ending}", force=False)
        first, second = ((tmp_path / f"{name}.{ending}").read_bytes() for name in "ab")
        assert first == second
        magic = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml", "pdf": b"%PDF-"}
        assert first.startswith(magic[ending])

    def test_svg_text_is_text(self, tmp_path: Path) -> None:
        save_likeness_plot(
            likeness_record(likeness(4, name="适配器{}-{}$x$")), tmp_path / "a.svg", force=False
        )
        root = ET.fromstring((tmp_path / "a.svg").read_text(encoding="utf-8"))
        text = "\n".join("".join(n.itertext()) for n in root.iter() if n.tag.endswith("text"))
        for expected in ("cosine of the updates", "overlap of input subspaces", "适配器0-3$x$"):
            assert expected in text

    def test_refusals(self, tmp_path: Path, monkeypatch) -> None:
        record = likeness_record(likeness(3))
        with pytest.raises(OptionError, match=r"\.png, \.svg or \.pdf"):
            save_likeness_plot(record, tmp_path / "a.jpg", force=False)
        (tmp_path / "a.svg").write_text("mine")
        with pytest.raises(CheckpointError, match="exists"):
            save_likeness_plot(record, tmp_path / "a.svg", force=False)
        assert (tmp_path / "a.svg").read_text() == "mine"
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(BackendError, match="matplotlib"):
            save_likeness_plot(record, tmp_path / "b.svg", force=False)


def luminance(colour) -> float:
    """Of the Web Content Accessibility Guidelines, which ask for a contrast of 4.5, or 3."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return float(np.dot(parts, (0.2126, 0.7152, 0.0722)))
