"""The report page in a real Chromium: the numbers it shows against those of the library."""

from typing import Any

import numpy as np
import pytest

import lotr_tn as lt
from lotr_tn.report.numbers import byte_size, count, error, times
from tests.report.conftest import NAMES
from tests.report.page_records import demo_surfaces, empty_group, made_up_group, record_of

MOVE = """([id, value]) => {
  const control = document.getElementById(id);
  control.value = value;
  control.dispatchEvent(new Event("input", {bubbles: true}));
}"""
NUMBERS = ("error", "lower", "params", "bytes", "ratio", "ranks")


@pytest.fixture(scope="module")
def surfaces() -> dict[str, lt.analysis.ErrorSurface]:
    return demo_surfaces(NAMES)


def only(group: dict[str, Any]) -> dict[str, Any]:
    """A record of one group."""
    return record_of([group], sources=["lotr-demo/adapter"])


def numbers(page: Any) -> dict[str, str]:
    return {name: page.locator(f"#now-{name}").inner_text() for name in NUMBERS}


def as_shown(pair: lt.analysis.RankPair, lora: int) -> dict[str, str]:
    return {
        "error": error(pair.relative_error),
        "lower": error(pair.lower_bound),
        "params": f"{pair.parameters:,}",
        "bytes": byte_size(4 * pair.parameters),
        "ratio": times(pair.parameters, lora),
        "ranks": f"{pair.r1}, {pair.r2}",
    }


def ranks_now(page: Any) -> tuple[int, int]:
    return tuple(int(page.locator(f"#{name}").input_value()) for name in ("r1", "r2"))  # type: ignore[return-value]


def drag(page: Any, name: str, share: float) -> None:
    """Drag a slider's thumb by mouse to a share of its length."""
    control = page.locator(f"#{name}")
    control.scroll_into_view_if_needed()
    box, half = control.bounding_box(), 8
    now = float(control.input_value()) / float(control.get_attribute("max"))
    inner = box["width"] - 2 * half
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + half + now * inner, y)
    page.mouse.down()
    page.mouse.move(box["x"] + half + 0.5 * inner, y)
    page.mouse.move(box["x"] + half + share * inner, y, steps=4)
    page.mouse.up()


def choose(page: Any, name: str) -> None:
    page.get_by_label("Group", exact=True).select_option(label=name)


def test_numbers_are_written_as_python_writes_them(page):
    rng = np.random.default_rng(0)
    values = [1e-5, 0.09999995, 0.99995, 0.15625, 0.0001, 9.9995e-05, 9999.5, 10000.5, 1e-300, 0.0]
    values += [2.5, 0.00390625, 1 / 3, 0.5, 1.0, 100.0, 1000.5, 12345678.0, 5e-324, 0.03125]
    values += (10 ** rng.uniform(-12, 6, 500)).tolist()
    values += (rng.integers(1, 2**16, 500) / 2.0 ** rng.integers(0, 20, 500)).tolist()  # ties
    found = page.evaluate("xs => xs.map((x) => lotrPage.error(x))", values)
    assert found == [error(x) for x in values]
    assert any(error(x) != error(x * (1 + 1e-9)) for x in values)  # ties are among them
    counts = [0, 1, 999, 1000, 9999, 10000, 12345, 999999, 10**6, 1005000, 10**9, 2 * 10**12]
    for name, wanted in (
        ("byteSize", byte_size),
        ("shortCount", count),
        ("thousands", lambda x: f"{x:,}"),
    ):
        found = page.evaluate(f"xs => xs.map((x) => lotrPage.{name}(x))", counts)
        assert found == [wanted(x) for x in counts], name
    pairs = [(1, 8), (3, 8), (5, 8), (1, 3), (2, 3), (7, 0), (201, 200), (0, 5), (10**7, 3)]
    found = page.evaluate("xs => xs.map(([a, b]) => lotrPage.times(a, b))", pairs)
    assert found == [times(a, b) for a, b in pairs]


def test_dragged_sliders_show_the_numbers_of_the_library(page, record, surfaces):
    for group in record["groups"]:
        choose(page, group["name"])
        seen = set()
        for r1, r2 in ((0.3, 0.8), (0.75, 0.1), (1.0, 1.0), (0.0, 0.6)):
            drag(page, "r1", r1)
            drag(page, "r2", r2)
            ranks = ranks_now(page)
            seen.add(ranks)
            pair = surfaces[group["name"]].at(*ranks)
            assert numbers(page) == as_shown(pair, group["params"])
            assert page.locator("#r1-now").inner_text() == str(ranks[0])
        assert len(seen) == 4
        assert (64, 64) in seen


def test_every_pair_shows_the_error_of_the_library(page, record, surfaces):
    """Each third pair, moved within the page."""
    texts = page.evaluate(
        """(most) => {
          const found = [];
          const text = (id) => document.getElementById(id).textContent;
          for (let i = 0; i <= most; i += 3) {
            for (let j = 0; j <= most; j += 3) {
              r1.value = i;
              r2.value = j;
              r1.dispatchEvent(new Event("input"));
              found.push([i, j, text("now-error"), text("now-lower"), text("now-params")]);
            }
          }
          return found;
        }""",
        64,
    )
    assert len(texts) == 22 * 22
    for r1, r2, *shown in texts:
        pair = surfaces[record["groups"][0]["name"]].at(r1, r2)
        wanted = [error(pair.relative_error), error(pair.lower_bound), f"{pair.parameters:,}"]
        assert shown == wanted, (r1, r2)


def test_the_keyboard_moves_the_sliders(page, record, surfaces):
    slider = page.get_by_role("slider", name="Rank r1")
    slider.focus()
    page.keyboard.press("Home")
    assert ranks_now(page)[0] == 0
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert ranks_now(page)[0] == 2
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert ranks_now(page) == (2, 63)
    pair = surfaces["gate_proj"].at(2, 63)
    assert numbers(page) == as_shown(pair, record["groups"][0]["params"])
    assert slider.get_attribute("aria-valuetext") == "2"


def test_the_page_is_walked_by_the_tab_key(page):
    walked = []
    for _ in range(40):
        page.keyboard.press("Tab")
        walked.append(
            page.evaluate("document.activeElement.id || document.activeElement.className")
        )
    assert walked[0] == "skip"
    wanted = [
        "budget",
        "group",
        "r1",
        "r2",
        "front",
        "within",
        "find-cheapest",
        "room",
        "find-best",
    ]
    assert [name for name in walked if name in wanted][: len(wanted)] == wanted
    page.locator("#r1").focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_another_group_has_its_own_numbers_and_keeps_them(page, record, surfaces):
    page.evaluate(MOVE, ["r1", 7])
    page.evaluate(MOVE, ["r2", 9])
    group = page.get_by_role("combobox", name="Group")
    group.focus()
    page.keyboard.press("ArrowDown")
    assert group.input_value() == "1"
    page.evaluate(MOVE, ["r1", 11])
    ranks = ranks_now(page)
    assert ranks[0] == 11
    assert numbers(page) == as_shown(surfaces["q_proj"].at(*ranks), record["groups"][1]["params"])
    assert page.locator("#group-1").is_visible()
    assert page.locator("#group-0").is_hidden()
    choose(page, "gate_proj")
    assert ranks_now(page) == (7, 9)
    assert numbers(page) == as_shown(surfaces["gate_proj"].at(7, 9), record["groups"][0]["params"])


def test_the_slider_of_best_pairs_walks_along_the_front(page, record):
    group = record["groups"][0]
    for index in (0, 20, len(group["front"]) - 1):
        page.evaluate(MOVE, ["front", index])
        point = group["front"][index]
        shown = numbers(page)
        assert shown["ranks"] == f"{point['r1']}, {point['r2']}"
        assert shown["error"] == error(point["relative_error"])
        assert shown["params"] == f"{point['params']:,}"
        assert ranks_now(page) == (point["r1"], point["r2"])


def test_errors_of_the_layers_follow_the_pair(page, record):
    group = record["groups"][0]
    page.get_by_text("Errors of the layers as a table").click()
    for index in (3, 40):
        page.evaluate(MOVE, ["front", index])
        rows = page.locator("#layer-rows tr").all_inner_texts()
        point = group["front"][index]
        wanted = [
            f"{label}\t{module}\t{error(found)}"
            for label, module, found in zip(
                group["labels"], group["modules"], point["layer_errors"], strict=True
            )
        ]
        assert rows == wanted
        column = page.locator("#layer-heat .column").bounding_box()
        heat = page.locator("#layer-heat canvas").bounding_box()
        middle = (column["x"] + column["width"] / 2 - heat["x"]) / heat["width"]
        assert int(middle * len(group["front"])) == index


def test_the_mark_stands_on_its_place_in_the_chart(page, record):
    """Error and parameters of two points of the front, by the positions of their dots."""
    page.evaluate(MOVE, ["front", 30])
    dot = page.locator("#front-chart .dot").nth(30).bounding_box()
    mark = page.locator("#front-chart .current .centre").bounding_box()
    for side, size in (("x", "width"), ("y", "height")):
        assert dot[side] + dot[size] / 2 == pytest.approx(mark[side] + mark[size] / 2, abs=0.5)


def test_pairs_are_found_as_the_library_finds_them(page, record, surfaces):
    surface, lora = surfaces["gate_proj"], record["groups"][0]["params"]
    for bound in (0.05, 0.3, 0.9):
        page.get_by_label("Error at most").fill(str(bound))
        page.get_by_role("button", name="Find the cheapest").click()
        assert numbers(page) == as_shown(surface.cheapest(bound), lora)
    for params in (3000, lora):
        page.get_by_label("Parameters at most").fill(str(params))
        page.keyboard.press("Enter")
        assert numbers(page) == as_shown(surface.best(params), lora)
    assert "the best within" in page.locator("#found").inner_text()
    page.get_by_label("Parameters at most").fill("")
    page.get_by_role("button", name="Find the best").click()
    assert "Give a number" in page.locator("#found").inner_text()


def test_a_click_on_the_map_chooses_the_pair(page, surfaces, record):
    box = page.locator("#surface-heat canvas").bounding_box()
    cell = box["width"] / 65, box["height"] / 65
    page.locator("#surface-heat canvas").scroll_into_view_if_needed()
    box = page.locator("#surface-heat canvas").bounding_box()
    page.mouse.click(box["x"] + 20.5 * cell[0], box["y"] + box["height"] - 33.5 * cell[1])
    assert ranks_now(page) == (20, 33)
    wanted = as_shown(surfaces["gate_proj"].at(20, 33), record["groups"][0]["params"])
    assert numbers(page) == wanted


def test_the_map_has_the_colours_of_the_errors(page, surfaces):
    """The pixel of every pair depends on its error alone, and is brighter for a larger one."""
    pixels = page.evaluate(
        """() => {
          const canvas = document.querySelector("#surface-heat canvas");
          return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
        }"""
    )
    image = np.array(pixels).reshape(65, 65, 4)[::-1, :, :3].transpose(1, 0, 2)  # [r1, r2]
    luminance = image @ np.array([0.2126, 0.7152, 0.0722])
    errors = np.clip(surfaces["gate_proj"].errors, 1e-3, 1.0)
    order = np.argsort(errors.ravel(), kind="stable")
    assert (np.diff(luminance.ravel()[order]) >= -1.0).all()
    assert luminance.ravel()[order[-1]] - luminance.ravel()[order[0]] > 150


def test_budgets_show_the_numbers_of_the_record(page, record):
    for share, index in ((0.0, 0), (1.0, len(record["budgets"]) - 1), (0.6, None)):
        drag(page, "budget", share)
        now = int(page.locator("#budget").input_value())
        assert index is None or now == index
        budget = record["budgets"][now]
        found = {n: page.locator(f"#all-{n}").inner_text() for n in ("error", "params", "bytes")}
        assert found == {
            "error": error(budget["relative_error"]),
            "params": f"{budget['params']:,}",
            "bytes": byte_size(budget["bytes"]),
        }
        assert page.locator("#all-ratio").inner_text() == times(budget["params"], record["params"])
        rows = page.locator("#whole-rows tr").all_inner_texts()
        for row, group, part in zip(rows, record["groups"], budget["groups"], strict=True):
            name, form, ranks, params, found_error = row.split("\t")
            assert name == group["name"]
            assert form
            assert ranks == part["ranks"]
            assert params == f"{part['params']:,}"
            assert found_error == error(part["relative_error"])


def test_a_screen_reader_is_told_the_numbers_once_they_rest(page, record, surfaces):
    from playwright.sync_api import expect

    page.evaluate(MOVE, ["r1", 21])
    pair = surfaces["gate_proj"].at(*ranks_now(page))
    said = page.locator("#now-said")
    expect(said).to_contain_text(
        f"relative error {error(pair.relative_error)}, {pair.parameters:,} parameters"
    )
    assert said.get_attribute("role") == "status"
    described = page.locator("#front-chart svg desc")
    expect(described).to_contain_text(error(pair.lower_bound))


def test_a_group_of_zero_updates_says_so(show, record):
    page = show(record_of([empty_group(), record["groups"][0]], sources=["adapter"]))
    assert "nothing to keep" in page.locator("#group-notice").inner_text()
    assert numbers(page)["error"] == "0"
    assert numbers(page)["params"] == "0"
    assert page.locator("#r1").is_disabled()
    choose(page, "gate_proj")
    assert page.locator("#group-notice").is_hidden()
    assert page.locator("#r1").is_enabled()


def test_a_group_without_a_surface_offers_its_best_pairs(show, record):
    group = {key: value for key, value in record["groups"][0].items() if key != "surface"}
    page = show(only(group))
    assert "only its best pairs" in page.locator("#group-notice").inner_text()
    assert page.locator("#r1").is_hidden()
    assert page.locator("#surface-heat").is_hidden()
    page.get_by_role("slider", name="Best pairs").focus()
    page.keyboard.press("Home")
    point = group["front"][0]
    assert numbers(page)["error"] == error(point["relative_error"])
    assert numbers(page)["lower"] == error(point["lower_bound"])


def test_a_surface_of_some_ranks_steps_over_them(show):
    group = made_up_group("q_proj", (200, 512, 384), 8, 33)
    group["labels"] = [f"adapter number {i // 10}, layer {i % 10}" for i in range(200)]
    surface = group["surface"]
    assert surface["r1"][5] == 60
    page = show(record_of([group], sources=[f"run/{i}" for i in range(12)]))
    assert "stop at some ranks" in page.locator("#group-notice").inner_text()
    page.evaluate(MOVE, ["r1", 5])
    page.evaluate(MOVE, ["r2", 9])
    r1, r2 = surface["r1"][5], surface["r2"][9]
    shown = numbers(page)
    assert shown["ranks"] == f"{r1}, {r2}"
    assert shown["params"] == f"{512 * r1 + 384 * r2 + 200 * r1 * r2:,}"
    assert shown["error"] == error(surface["errors"][5][9])
    between = group["front"][6] | {"r1": 7, "r2": 61, "relative_error": 0.4321}
    group["front"][6] = between
    page = show(record_of([group], sources=["run"]))
    page.evaluate(MOVE, ["front", 6])
    assert numbers(page)["ranks"] == "7, 61"  # not listed, and shown exactly all the same
    assert numbers(page)["error"] == "0.4321"


def test_missing_parts_leave_the_rest_standing(show, record):
    group = record["groups"][0] | {"front": [], "overlap": None, "curves": [], "clusters": []}
    page = show(only(group) | {"budgets": []})
    assert page.locator("#whole").is_hidden()
    assert page.locator("#front-chart").is_hidden()
    page.evaluate(MOVE, ["r1", 3])
    assert numbers(page)["ranks"] == "3, 32"
    page = show(record_of([], sources=["adapter"]))
    assert page.locator("#one").is_hidden()
    page = show(only({k: v for k, v in group.items() if k != "surface"}))
    assert "no best pairs" in page.locator("#group-notice").inner_text()
    assert numbers(page)["error"] == "-"


def test_missing_numbers_of_layers_are_dashes(show, record):
    front = [
        p | {"layer_errors": [None, *p["layer_errors"][1:]]} for p in record["groups"][0]["front"]
    ]
    page = show(only(record["groups"][0] | {"front": front}))
    page.get_by_text("Errors of the layers as a table").click()
    rows = page.locator("#layer-rows tr").all_inner_texts()
    assert rows[0].endswith("\t-")
    assert not rows[1].endswith("\t-")


def test_names_are_text_and_never_markup(show, record):
    name = '</script><img src="x" onerror="alert(1)"><!--'
    page = show(only(record["groups"][0] | {"name": name}) | {"sources": [name]})
    assert page.locator("#group option").inner_text() == name
    assert page.locator("img").count() == 0
    assert page.title() == page.locator("h1").inner_text() == name.rpartition("/")[2]
    assert name in page.locator(".present .facts").inner_text()
