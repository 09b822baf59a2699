"""Figures of an analysis: what they show, how they read, and how they are written."""

import copy
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from functools import cache
from itertools import pairwise, product
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from lotr_tn.analysis.forms import FORMS
from lotr_tn.errors import BackendError, CheckpointError, OptionError
from lotr_tn.report.plots import refuse_plot, save_plot
from lotr_tn.report.plots.figure import draw
from lotr_tn.report.plots.scales import log_axis, plain_number, short_count
from lotr_tn.report.plots.style import STYLE
from tests.report.plot_records import (
    EDGES,
    LABELS,
    exact,
    group,
    one_point,
    record_of,
    zero_group,
    zero_layer,
)

MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml", "pdf": b"%PDF-"}


def drawn(record: dict) -> Figure:
    """The figure, in its own style."""
    with context(STYLE, after_reset=True):
        return draw(record)


def panel(figure: Figure, column: int, row: int = 0) -> Axes:
    """One panel: each has a title, colour bars and legends have none."""
    panels = [ax for ax in figure.axes if ax.get_title(loc="left")]
    return panels[3 * row + column]


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in texts(figure))


def texts(figure: Figure) -> list[Text]:
    found = figure.findobj(Text)
    return [t for t in found if isinstance(t, Text) and t.get_visible() and t.get_text()]


def legends(figure: Figure) -> list:
    return [ax.get_legend() for ax in figure.axes if ax.get_legend()]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one record and its figure in files of every ending, drawn once."""
    folder = tmp_path_factory.mktemp("saved")
    record = record_of(group(layers=3))
    for name in ("a.png", "a.svg", "a.pdf", "capitals.PNG"):
        save_plot(record, folder / name, force=False)
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def test_files_are_what_their_ending_says(saved: Path) -> None:
    for ending, magic in MAGIC.items():
        assert (saved / f"a.{ending}").read_bytes().startswith(magic)
    assert (saved / "capitals.PNG").read_bytes() == (saved / "a.png").read_bytes()
    assert {p.name for p in saved.iterdir()} == {
        "a.png", "a.svg", "a.pdf", "capitals.PNG", "record.json",
    }  # fmt: skip


def test_svg_text_is_text_and_says_which_adapter_and_which_error(saved: Path) -> None:
    found = ET.fromstring((saved / "a.svg").read_text(encoding="utf-8"))
    text = "\n".join("".join(node.itertext()) for node in found.iter() if node.tag.endswith("text"))
    for expected in (
        "LoRA adapter first/adapter, base roberta-base, bfloat16",
        "Asked: relative error at most 0.1 in each group.",
        "relative error 0.0987 (Frobenius)",
        "parameters (numbers stored)",
        "relative error (Frobenius)",
        "relative error of the layer",
        "singular value of ΔW",
        "rank index (largest first)",
        "3 layers of 40 × 30, rank 4",
        "q_proj: each layer's rank cut",
        "LoTR: U and V shared",
        "lower bound, any LoTR",
        "asked error",
        "recommended",
    ):
        assert expected in text, expected


def test_the_same_record_gives_the_same_bytes_in_another_process(
    saved: Path, tmp_path: Path
) -> None:
    """Which loads matplotlib only to draw."""
    code = (
        "import json, sys; from pathlib import Path; from lotr_tn.report.plots import save_plot\n"
        "assert 'matplotlib' not in sys.modules\n"
        "source, target = map(Path, sys.argv[1:]); record = json.loads(source.read_text())\n"
        "for kind in ('png', 'svg', 'pdf'): save_plot(record, target / f'a.{kind}', force=False)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    other = os.environ | {"PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code, str(saved / "record.json"), str(tmp_path)]
    subprocess.run(command, check=True, env=other)
    for kind in MAGIC:
        first, second = ((folder / f"a.{kind}").read_bytes() for folder in (saved, tmp_path))
        assert first == second, kind


def test_settings_of_the_caller_are_neither_used_nor_changed(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"font.size": 33.0, "svg.fonttype": "path", "lines.linewidth": 9}.items():
        monkeypatch.setitem(mpl.rcParams, name, value)
    before = mpl.rcParams.copy()
    save_plot(record_of(group(layers=3)), tmp_path / "b.svg", force=False)
    assert mpl.rcParams.copy() == before
    assert (saved / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(
    "refuse", [refuse_plot, lambda path, force: save_plot({}, path, force=force)]
)
class TestRefusals:
    def test_missing_matplotlib(self, refuse, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(BackendError, match=r'python -m pip install "lotr-tn\[plot\]"'):
            refuse(tmp_path / "figure.png", force=False)

    @pytest.mark.parametrize(
        ("name", "found"), [("figure.jpg", "ends in .jpg"), ("figure", "has no ending")]
    )
    def test_unknown_ending(self, refuse, tmp_path: Path, name: str, found: str) -> None:
        with pytest.raises(OptionError, match=rf"\.png, \.svg or \.pdf; .*{name} {found}"):
            refuse(tmp_path / name, force=False)

    def test_existing_file(self, refuse, tmp_path: Path) -> None:
        path = tmp_path / "figure.png"
        path.write_text("mine")
        with pytest.raises(CheckpointError, match=r"figure\.png exists.*force=True"):
            refuse(path, force=False)
        assert path.read_text() == "mine"

    def test_missing_folder(self, refuse, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="does not exist"):
            refuse(tmp_path / "none" / "figure.png", force=True)


def test_force_replaces(tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    path.write_text("old")
    save_plot(record_of(zero_group()), path, force=True)
    assert path.read_bytes().startswith(MAGIC["svg"])


def test_a_drawing_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    path.write_text("old")
    broken = record_of(group(layers=2))
    del broken["groups"][0]["spectra"]
    with pytest.raises(KeyError, match="spectra"):
        save_plot(broken, path, force=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


class TestPanels:
    def test_spectra_are_drawn_as_they_are(self) -> None:
        found = group()
        ax = panel(drawn(record_of(found)), 0)
        lines = {str(line.get_label()): line.get_xydata() for line in ax.get_lines()}
        np.testing.assert_array_equal(
            lines["outputs, all layers"],
            np.column_stack([np.arange(1, 49), found["spectra"]["left"]]),
        )
        middle = np.median(found["spectra"]["layers"], axis=0)
        np.testing.assert_allclose(lines["median of layers"][:, 1], middle, rtol=1e-15)

    def test_errors_show_size_question_and_answer(self) -> None:
        found = group()
        ax = panel(drawn(record_of(found)), 1)
        lines = {str(line.get_label()): line for line in ax.get_lines()}
        assert set(lines["LoRA as it is"].get_xdata()) == {found["params"]}
        assert set(lines["asked error"].get_ydata()) == {0.1}
        best = next(c for c in found["candidates"] if c["format"] == "truncated")
        np.testing.assert_array_equal(
            lines["recommended"].get_xydata(), [[best["params"], best["relative_error"]]]
        )
        left, right = ax.get_xlim()
        assert left < best["params"] < found["params"] < right
        top, errors = ax.get_ylim()[1], [p["relative_error"] for p in found["front"]]
        assert ax.get_ylim()[0] < 0.1 < max(errors) < top

    def test_layers_are_in_natural_order(self) -> None:
        found = group()
        order = [0, 1, 10, 11, *range(2, 10)]
        found["labels"] = [str(i) for i in order]
        for point in found["front"]:
            point["layer_errors"] = [0.05 * (1 + i) for i in order]
        ax = panel(drawn(record_of(found)), 2)
        (mesh,) = ax.collections
        shown = np.asarray(mesh.get_array())
        np.testing.assert_allclose(shown[:, 0], 0.05 * np.arange(1, 13), rtol=1e-12)
        assert [t.get_text() for t in ax.get_yticklabels()] == [str(i) for i in range(12)]

    def test_overlap_where_there_is_no_front(self) -> None:
        found = group(layers=3) | {"front": []}
        found["overlap"]["left"] = [[1, 0.2, 0.3], [0.2, 1, 0.4], [0.3, 0.4, 1]]
        found["overlap"]["right"] = [[1, 0.5, 0.6], [0.5, 1, 0.7], [0.6, 0.7, 1]]
        figure = drawn(record_of(found))
        (image,) = panel(figure, 2).images
        expected = [[1, 0.5, 0.6], [0.2, 1, 0.7], [0.3, 0.4, 1]]
        np.testing.assert_array_equal(np.asarray(image.get_array()), expected)
        assert "mean squared cosine" in words(figure)
        assert "outputs below the diagonal, inputs above" in words(figure)

    @pytest.mark.parametrize(
        ("question", "sentence", "line"),
        [
            ({"kind": "rel_error", "value": 0.1}, "at most 0.1 in each group", "asked error"),
            (
                {"kind": "total_error", "value": 0.1},
                "at most 0.1, all groups together",
                "asked error, all groups together",
            ),
            ({"kind": "max_params", "value": 12345}, "at most 12,345 parameters", None),
            ({"kind": "max_bytes", "value": 12345}, "at most 12.3 kB", None),
        ],
    )
    @pytest.mark.parametrize("met", [True, False])
    def test_every_question(self, question: dict, sentence: str, line: str | None, met) -> None:
        figure = drawn(record_of(group(layers=1), question=question, met=met))
        end = "." if met else " (not met)."
        assert f"{sentence}{end}" in words(figure)
        labels = {str(found.get_label()) for found in panel(figure, 1).get_lines()}
        assert {label for label in labels if label.startswith("asked")} == {line} - {None}


PAGE = 7
"""Edge cases that are drawn in one figure, above an ordinary group."""


@cache
def page_of_edges(kind: str, first: int) -> tuple[list[Bbox], list[Bbox], list[Bbox]]:
    """Legends, titles and panels of a figure of some edge cases, which is drawn and read once."""
    groups = [*list(EDGES.values())[first : first + PAGE], group()]
    record = record_of(*groups, question={"kind": kind, "value": 0.1})
    figure = drawn(json.loads(json.dumps(record)))
    figure.draw_without_rendering()  # labels of axes take their places
    renderer = FigureCanvasAgg(figure).get_renderer()
    width, height = figure.get_size_inches() * figure.dpi
    assert width / figure.dpi / 3 <= 3.5
    panels = [panel(figure, column, row) for row in range(len(groups)) for column in range(3)]
    boxes = [ax.get_window_extent(renderer) for ax in panels]
    assert all(box.width > 1.5 * figure.dpi for box in boxes)
    assert all(box.height > 1.2 * figure.dpi for box in boxes)
    for text in texts(figure):
        assert text.get_fontsize() >= 7, text
        box = text.get_window_extent(renderer)
        inside = box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height
        assert inside or not _on_its_axis(text), text
    whole = [legend.get_window_extent(renderer) for legend in legends(figure)]
    titles = [ax._left_title.get_window_extent(renderer) for ax in panels]  # type: ignore[attr-defined]
    return whole, titles, boxes


@pytest.mark.parametrize("case", EDGES)
@pytest.mark.parametrize("kind", ["rel_error", "max_params"])
def test_every_group_can_be_drawn_and_read(case: str, kind: str) -> None:
    place = list(EDGES).index(case)
    whole, titles, boxes = page_of_edges(kind, place - place % PAGE)
    own = slice(3 * (place % PAGE), 3 * (place % PAGE) + 3)
    parts = [*whole, *titles, *boxes]
    for one, other in product([*titles[own], *boxes[own]], parts):
        assert one is other or not one.overlaps(other), (one, other)


def _on_its_axis(text: Text) -> bool:
    """Ticks outside of an axis' limits have a text that is never drawn."""
    axes = text.axes
    if axes is None:
        return True
    x, y = text.get_position()
    low, high = axes.get_xlim()
    if text in axes.get_xticklabels(which="both"):
        return low <= x <= high
    if text in axes.get_yticklabels(which="both"):
        low, high = sorted(axes.get_ylim())
        return low <= y <= high
    return True


def test_nothing_to_keep_is_said() -> None:
    found = words(drawn(record_of(zero_group())))
    assert found.count("nothing to keep:\nall updates of this group are zero") == 3


def test_a_layer_without_an_update_is_grey() -> None:
    figure = drawn(record_of(zero_layer()))
    (mesh, grey) = panel(figure, 2).collections
    shown = np.ma.asarray(mesh.get_array())
    assert shown.mask[1].all()
    assert not shown.mask[[0, 2]].any()
    assert grey.get_label() == "layer without an update"
    assert to_hex(panel(figure, 2).get_facecolor()) == to_hex(grey.get_facecolor()[0])
    assert "layer without an update" in words(figure)


def test_one_point_is_seen() -> None:
    ax = panel(drawn(record_of(one_point())), 1)
    front = next(line for line in ax.get_lines() if line.get_label() == LABELS["lotr"])
    assert front.get_marker() == "o"
    assert front.get_markevery() == [0]


def test_an_exact_answer_is_marked_at_the_foot() -> None:
    ax = panel(drawn(record_of(exact())), 1)
    star = next(line for line in ax.get_lines() if line.get_label() == "recommended")
    assert list(star.get_ydata()) == [ax.get_ylim()[0]]
    assert not star.get_clip_on()


def test_the_largest_groups_are_shown_and_the_others_counted() -> None:
    groups = [group(f"group_{i}", layers=1 + i % 5) for i in range(11)]
    figure = drawn(record_of(*groups))
    assert "Shown: the 8 largest of 11 groups by parameters; 3 left out." in words(figure)
    shown = [panel(figure, 0, row).get_title(loc="left").split("\n")[0] for row in range(8)]
    assert shown == [f"group_{i}" for i in range(11) if i not in (0, 5, 10)]


def test_no_group_is_a_title() -> None:
    assert "LoRA adapter" in words(drawn(record_of() | {"recommended": None}))


@pytest.mark.parametrize(
    ("sources", "title"),
    [
        (["adapter"], "LoRA adapter adapter,"),
        (["/a/b/c"], "LoRA adapter b/c,"),
        (["run/x/last", "run/y/last"], "2 LoRA adapters: x/last, y/last,"),
        (["x/run/last", "y/run/last"], "2 LoRA adapters: x/run/last, y/run/last,"),
        ([f"run/{i}" for i in range(18)], "18 LoRA adapters: run/0, run/1, run/2 and 15 more,"),
        (["$cash$/\x07\udcff"], "LoRA adapter $cash$/??,"),
    ],
)
def test_adapters_have_short_names(tmp_path: Path, sources: list[str], title: str) -> None:
    record = record_of(sources=sources, base_model=None, recommended=None)
    assert f"{title} bfloat16" in words(drawn(record))
    save_plot(record, tmp_path / "figure.svg", force=False)
    assert title in (tmp_path / "figure.svg").read_text(encoding="utf-8")


def test_a_script_that_the_font_lacks_is_no_warning(tmp_path: Path) -> None:
    record = record_of(group("层", layers=1), sources=["适配器"])
    for kind in MAGIC:
        save_plot(record, tmp_path / f"figure.{kind}", force=False)
    assert "适配器" in (tmp_path / "figure.svg").read_text(encoding="utf-8")


def test_bits_are_drawn_in_bytes_beside_a_gaussian_rate() -> None:
    one = group(layers=3)
    sizes, errors = [900.0, 300.0, 40.0], [0.01, 0.1, 0.6]
    bits = {"bytes": sizes, "rate": [800.0, 250.0, 0.0], "relative_error": errors}
    record = record_of(one | {"in_bits": bits}) | {
        "in_bits": {"bytes": 1234, "update_bytes": 300, "relative_error": 0.1}
    }
    figure = drawn(record)
    ax = panel(figure, 1)
    assert ax.get_xlabel() == "bytes (of the updates, without a header)"
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert lines["in bits"].get_xdata().tolist() == sizes
    assert lines["rate of a Gaussian model"].get_xdata().tolist() == [800.0, 250.0]
    assert lines["LoRA as it is"].get_xdata()[0] == one["bytes"]
    best = next(c for c in one["candidates"] if c["format"] == one["recommended"])
    assert lines["best in numbers"].get_xdata().tolist() == [best["bytes"]]
    assert "In bits: 1.23 kB, relative error 0.1 (Frobenius)." in words(figure)
    assert "Error against bytes" in [x.get_title().get_text() for x in legends(figure)]


def test_formats_differ_without_colour() -> None:
    for kind in ("dashes", "marker", "colour"):
        looks = [str(getattr(form.look, kind)) for form in FORMS.values()]
        assert len(set(looks)) == len(FORMS), kind
    assert all(to_hex(form.look.colour).upper() == form.look.colour for form in FORMS.values())


@pytest.mark.parametrize(
    ("low", "high"),
    [(1, 1.1), (0.9, 1.35), (1, 9), (0.025, 1.3), (1e-12, 1.3), (384, 2e6), (7e5, 8e5), (1, 1e9)],
)
def test_axes_have_a_few_ticks(low: float, high: float) -> None:
    ax = Figure().add_subplot()
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    log_axis(ax.xaxis, low, high, plain_number)
    ticks = ax.get_xticks()
    assert 2 <= len(ticks) <= 6
    assert all(low <= tick <= high for tick in ticks)
    assert all(a < b for a, b in pairwise(ticks))


def test_whole_axes_have_whole_ticks() -> None:
    ax = Figure().add_subplot()
    log_axis(ax.xaxis, 0.9, 1.35, plain_number, whole=True)
    assert list(ax.get_xticks()) == [1]


@pytest.mark.parametrize(
    ("value", "text"), [(500, "500"), (2000, "2k"), (1.5e6, "1.5M"), (3e9, "3G")]
)
def test_short_counts(value: float, text: str) -> None:
    assert short_count(value) == text


def test_the_record_is_left_as_it_was() -> None:
    record = record_of(group(layers=2), zero_group())
    before = copy.deepcopy(record)
    drawn(record).draw_without_rendering()
    assert record == before
