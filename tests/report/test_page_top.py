"""What the page shows first, and the commands that it gives, in Chromium."""

import json
import shlex
from typing import Any

import pytest
from typer.testing import CliRunner

from lotr_tn.cli.main import app
from lotr_tn.report.numbers import byte_size, error, percent, times
from lotr_tn.report.page import page_html
from tests.report.page_records import DEMO, FORMS, empty_group
from tests.report.test_page_in_browser import MOVE, only


def line(page: Any, name: str = "command") -> str:
    return page.locator(f"#{name}").text_content()


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (360, 740)])
def test_name_saving_verdict_and_a_chart_are_above_the_fold(show, record, width, height):
    page = show(record, width=width)
    page.set_viewport_size({"width": width, "height": height})
    assert page.title() == page.locator("h1").inner_text() == "adapter"
    best = record["recommended"]
    saving = page.locator(".saving").inner_text()
    assert times(best["params"], record["params"]) in saving
    assert percent(best["relative_error"]) in saving
    tops = []
    for part in ("h1", ".saving", ".verdict", "#whole-chart svg"):
        box = page.locator(part).bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width, part
        assert box["y"] + box["height"] <= height, part
        tops.append(box["y"])
    assert tops[:3] == sorted(tops[:3])
    assert page.locator("#whole-chart .current").is_visible()


def test_the_command_follows_the_budget_and_comes_back(page, record):
    assert line(page) == "lotr convert lotr-demo/adapter --format auto --rel-error 0.05"
    assert page.locator("#all-params").inner_text() == f"{record['recommended']['params']:,}"
    assert page.locator("#whole-groups").is_hidden()
    page.evaluate(MOVE, ["budget", 20])
    wanted = f"--format auto --max-params {record['budgets'][20]['params']}"
    assert line(page) == f"lotr convert lotr-demo/adapter {wanted}"
    assert page.locator("#whole-groups").is_visible()
    page.get_by_role("button", name="Back to what is recommended").click()
    assert line(page).endswith("--rel-error 0.05")
    assert page.locator("#all-params").inner_text() == f"{record['recommended']['params']:,}"


def test_the_command_of_a_group_follows_its_ranks(page):
    page.evaluate(MOVE, ["r1", 7])
    page.evaluate(MOVE, ["r2", 9])
    wanted = "lotr convert lotr-demo/adapter --format lotr --rank 7,9"
    assert line(page, "pair-line") == wanted
    page.evaluate(MOVE, ["r1", 0])
    assert page.locator("#pair-command").is_hidden()


def test_a_group_of_zero_updates_has_no_command(show):
    assert show(only(empty_group())).locator("#pair-command").is_hidden()


def test_a_line_is_copied_by_the_keyboard_from_a_file(page):
    page.evaluate(MOVE, ["r1", 7])
    for name in ("command", "pair-line"):
        page.locator(f"[data-copies={name}]").focus()
        page.keyboard.press("Enter")
        page.wait_for_function(
            "(id) => document.getElementById(id).textContent === 'Copied.'", arg=f"{name}-copied"
        )
        page.evaluate("document.body.append(document.createElement('textarea'))")
        page.locator("textarea").focus()
        page.keyboard.press("Control+V")
        assert page.locator("textarea").input_value() == line(page, name)
        page.evaluate("document.querySelector('textarea').remove()")


def test_a_line_is_copied_where_there_is_no_clipboard_or_it_refuses(page):
    said = page.locator("#command-copied")
    page.evaluate("delete Navigator.prototype.clipboard")
    page.evaluate("document.execCommand = () => true")
    page.locator("[data-copies=command]").click()
    assert said.inner_text() == "Copied."
    page.evaluate("document.execCommand = () => false")
    page.locator("[data-copies=command]").click()
    assert "Ctrl+C" in said.inner_text()
    assert page.evaluate("getSelection().toString().trim()") == line(page)


def test_without_script_the_command_stands_and_nothing_can_be_pressed(show, record):
    page = show(record, java_script_enabled=False)
    assert page.locator("#command").is_visible()
    assert page.locator("button:visible").count() == 0


def test_a_table_wider_than_a_phone_says_that_it_scrolls(show, record):
    page = show(record, width=360)
    frame = page.locator(".frame").first
    cue = "(frame) => getComputedStyle(frame, '::before').content"
    shade = "(frame) => getComputedStyle(frame).maskImage"
    page.wait_for_selector(".frame.scrolls.more")
    assert "scroll sideways" in frame.evaluate(cue)
    assert "gradient" in frame.evaluate(shade)
    frame.evaluate("(frame) => { frame.scrollLeft = frame.scrollWidth; }")
    page.wait_for_selector(".frame.scrolls:not(.more)")
    assert frame.evaluate(shade) == "none"
    page.set_viewport_size({"width": 1280, "height": 720})
    page.wait_for_function("() => !document.querySelector('.frame').matches('.scrolls')")
    assert frame.evaluate(cue) == "none"


def test_the_commands_write_what_the_page_shows(show, tmp_path, monkeypatch):
    """The lines of a page of the program's own, run as they stand."""
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "of this adapter.html"
    asked = ["--rel-error", "0.3", "--max-rank", "6", "--html", str(made), "--quiet"]
    assert CliRunner().invoke(app, ["analyze", str(DEMO), *asked]).exit_code == 0
    page = show(made)

    def written(name: str = "command") -> dict[str, Any]:
        program, *words = shlex.split(line(page, name))
        assert program == "lotr"
        done = CliRunner().invoke(app, [*words, "--force", "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def shown(name: str) -> float:
        return float(page.locator(f"#all-{name}").inner_text().replace(",", ""))

    found = written()
    assert found["params_after"] == shown("params")
    assert error(found["relative_error"]) == error(shown("error"))
    page.evaluate(MOVE, ["budget", 50])
    assert "--max-rank=6" in line(page)
    found = written()
    assert found["params_after"] <= shown("params")
    assert found["relative_error"] <= 1.001 * shown("error")
    page.evaluate(MOVE, ["r1", 4])
    page.evaluate(MOVE, ["r2", 3])
    groups = written("pair-line")["groups"]
    assert {tuple(group["ranks"]) for group in groups} == {(4, 3)}
    assert groups[0]["relative_error"] <= 1.001 * float(page.locator("#now-error").inner_text())


def test_in_bits_the_page_tells_bytes_of_both_and_writes_them(show, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["--rel-error=0.3", "--each-layer", "--group=v_proj", "--group-by=kind"]
    asked += ["--coding=auto", "--html=a.html", "--json"]
    done = CliRunner().invoke(app, ["analyze", str(DEMO), *asked])
    record, page = json.loads(done.stdout), show(tmp_path / "a.html")
    bits, best = record["in_bits"], record["recommended"]

    def shown(name: str) -> str:
        return page.locator(f"#all-{name}").inner_text().replace("\xa0", " ")

    saving = page.locator(".saving").inner_text()
    assert times(bits["update_bytes"], record["bytes"]) in saving
    assert f"{byte_size(best['update_bytes'])} in numbers" in saving
    assert page.locator("#all-bytes-name").inner_text() == "In bits"
    assert shown("bytes") == byte_size(bits["update_bytes"])
    assert shown("params") == byte_size(best["update_bytes"])
    assert "--each-layer" in line(page)
    for host in ("whole", "front"):
        legend = page.locator(f"#{host}-legend").inner_text()
        assert "in bits" in legend
        assert "rate of a Gaussian model" in legend
        assert page.locator(f"#{host}-chart .curve.form-in-bits").count() == 1
        assert page.locator(f"#{host}-chart .curve.form-gaussian-rate").count() == 1
        assert "bytes of the updates" in page.locator(f"#{host}-chart").text_content()
    page.evaluate(MOVE, ["budget", 30])
    budget = record["budgets"][30]
    assert shown("bytes") == f"≈ {byte_size(budget['in_bits']['bytes'])}"
    assert shown("params") == byte_size(budget["bytes"])
    words = line(page)
    assert words.endswith(
        f"--total-error {error(budget['relative_error'])} --coding=auto --group-by=kind"
    )
    page.evaluate(MOVE, ["r1", 4])
    assert "--coding" not in line(page, "pair-line")
    assert "--each-layer" not in line(page, "pair-line")
    last = len(record["budgets"]) - 1
    page.evaluate(MOVE, ["budget", last])
    assert shown("bytes") == "-"
    assert line(page).endswith(f"--max-params {record['budgets'][last]['params']} --group-by=kind")
    done = CliRunner().invoke(app, [*shlex.split(words)[1:], "--json"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("sources", "title"),
    [
        (["runs/a/"], "a"),
        (["a/checkpoint-10", "b/checkpoint-20"], "checkpoint-10, checkpoint-20"),
        (["a/adapter", "b/adapter"], "a/adapter, b/adapter"),
        ([f"run/{i}" for i in range(12)], "12 adapters"),
        (["my lora.safetensors"], "my lora.safetensors"),
    ],
)
def test_a_page_is_named_after_its_adapters(record, sources, title):
    assert f"<title>{title}</title>" in page_html(record | {"sources": sources})


def test_several_adapters_are_put_into_a_bank(show, record):
    told = {"--map-prefix": ["a=b"], "--group": ["q_proj"], "--max-rank": ["4"]}
    ways = [way | {"name": "adapters-layers"} for way in record["stackings"]]
    several = record | {"sources": ["run/a b", "run/c"], "stackings": ways}
    page = show(several, told=told)
    words = shlex.split(line(page))
    assert words[:5] == ["lotr", "bank", "make", "run/a b", "run/c"]
    assert words[-3:] == ["--map-prefix=a=b", "-o", "bank.lotr.safetensors"]
    assert "a bank" in page.locator("#command-says").inner_text()
    notice = page.locator(".present .notice").inner_text()
    assert "--group q_proj" in notice
    assert "--max-rank 4" in notice
    page.evaluate(MOVE, ["budget", 3])
    assert f"--max-params {record['budgets'][3]['params']} " in line(page)
    page.evaluate(MOVE, ["r1", 7])
    page.evaluate(MOVE, ["r2", 9])
    assert "--format lotr --rank 7,9 --stack=layers --map-prefix" in line(page, "pair-line")
    alone = [way | {"name": "layers"} for way in record["stackings"]]
    assert show(several | {"stackings": alone}).locator("#pair-command").is_hidden()


def test_a_lotr_is_exported_before_it_is_converted(show, record, tmp_path):
    (file := tmp_path / "a b.lotr.safetensors").touch()
    source = str(file)
    page = show(record | {"sources": [source], "lotr_sources": [source]})
    page.evaluate(MOVE, ["budget", 3])
    export, convert = line(page).split(" && ")
    assert shlex.split(export) == [
        "lotr", "export", source, "--ranks", "minimal", "-o", "a b-peft",
    ]  # fmt: skip
    assert shlex.split(convert)[:3] == ["lotr", "convert", "a b-peft"]


def test_adapters_that_are_stacked_are_not_called_layers(show, record):
    page = show(only(record["groups"][0] | {"member": "adapter"}))
    page.locator("#one summary").evaluate_all("all => all.forEach((one) => one.click())")
    shown = page.locator("#one").inner_text() + page.locator("#group-0").inner_text()
    assert "Errors of the adapters" in shown
    assert "Adapters (how many)" in shown
    for said in (record["groups"][0]["advice"], FORMS["truncated"]):  # not by the page
        shown = shown.replace(said, "")
    assert not [line for line in shown.splitlines() if "layer" in line and "layers." not in line]
