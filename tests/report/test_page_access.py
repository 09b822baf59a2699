"""The report page in Chromium for everyone: screen readers, phones, dark, paper, no script."""

import numpy as np
import pytest

from lotr_tn.report.page import page_html


def test_everything_has_an_accessible_name(page):
    tree = page.locator("body").aria_snapshot()
    for name in (
        'slider "Budget of parameters"',
        'slider "Rank r1, output directions: ',
        'slider "Rank r2, input directions: ',
        'slider "Best pairs, by parameters"',
        'combobox "Group"',
        'spinbutton "Error at most"',
        'button "Find the cheapest"',
        'button "Copy"',
        'link "Skip to the answer"',
        'img "Error of the whole adapter against its parameters"',
        'img "Error against parameters of gate_proj"',
        'img "Error of each layer of gate_proj along the best pairs"',
        'img "Error of every pair of ranks of gate_proj"',
        'img "Singular values of gate_proj"',
        'table "Candidates for gate_proj"',
    ):
        assert name in tree, name
    pictures = page.locator("svg[role=img]")
    described = pictures.evaluate_all(
        "all => all.map((svg) => document.getElementById("
        "svg.getAttribute('aria-describedby')).textContent)"
    )
    page.wait_for_function(
        "() => [...document.querySelectorAll('svg[role=img] > desc')].every((d) => d.textContent)"
    )
    assert len(described) == 7
    loose = page.evaluate(
        "[...document.querySelectorAll('svg')].filter((s) => s.getAttribute('role') !== 'img'"
        " && s.getAttribute('aria-hidden') !== 'true').length"
    )
    assert loose == 0


def test_figures_say_which_adapter_and_which_error(page):
    captions = page.locator("figcaption").all_inner_texts()
    assert len(captions) == 6
    assert all("lotr-demo/adapter" in caption for caption in captions)
    assert sum("elative error" in caption for caption in captions) == 4
    for axis in ("parameters (stored numbers)", "relative error (Frobenius)"):
        assert page.locator("#front-chart svg .name", has_text=axis).count() == 1


def test_a_narrow_phone_scrolls_downwards_only(show, record):
    groups = [record["groups"][0], record["groups"][1] | {"name": "a_very_long_name." * 12}]
    sources = ["adapters/of/a/project/" + "deep/" * 30 + "adapter"]
    page = show(record | {"groups": groups, "sources": sources}, width=360)
    for index in ("1", "0"):
        page.get_by_label("Group", exact=True).select_option(index)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for name in ("r1", "budget"):
        box = page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        assert box["height"] >= 24


def test_a_page_that_grows_wider_is_drawn_anew(show, record):
    page = show(record, width=360)
    narrow = page.locator("#front-chart svg").get_attribute("viewBox")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.wait_for_function(
        "(was) => document.querySelector('#front-chart svg').getAttribute('viewBox') !== was",
        arg=narrow,
    )
    ratio = page.locator("#front-chart svg").evaluate(
        "(svg) => svg.viewBox.baseVal.width / svg.getBoundingClientRect().width"
    )
    assert ratio == pytest.approx(1, abs=0.02)


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as WCAG defines it."""
    parts = np.array([float(x) for x in colour[4:-1].split(",")]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_lines_stand_out_in_light_and_dark(show, record, scheme):
    page = show(record, color_scheme=scheme)
    paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper > 0.8) == (scheme == "light")

    def contrast(selector: str, what: str, behind: float = paper) -> float:
        found = page.locator(selector).first.evaluate(f"(e) => getComputedStyle(e).{what}")
        low, high = sorted([luminance(found), behind])
        return (high + 0.05) / (low + 0.05)

    raised = luminance(
        page.locator(".best").first.evaluate("(e) => getComputedStyle(e).backgroundColor")
    )
    for selector in ("body", ".asked", "figcaption", "summary", "dt", "thead th"):
        assert contrast(selector, "color") >= 4.5, selector
    for selector in (".badge", "#command"):
        assert contrast(selector, "color", raised) >= 4.5, selector
    for selector in ("#front-chart .tick", "#front-chart .name"):
        assert contrast(selector, "fill") >= 4.5, selector
    for form in ("lotr", "truncated", "shared-in", "shared-out"):
        assert contrast(f"#front-chart .curve.form-{form}", "stroke") >= 3, form
    assert contrast("#front-chart .mark.form-lotr-low-rank", "fill") >= 3


def test_forms_differ_in_shape_and_in_line(page):
    marks = page.locator("#front-chart .mark").evaluate_all(
        "all => all.map((m) => m.getAttribute('d'))"
    )
    assert len(set(marks)) == len(marks) == 6
    dashes = page.locator("#front-chart .curve").evaluate_all(
        "all => all.map((c) => getComputedStyle(c).strokeDasharray)"
    )
    assert len(set(dashes)) == len(dashes) == 4


def test_print_shows_every_group_on_white_without_controls(show, record):
    page = show(record, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for index in range(len(record["groups"])):
        assert page.locator(f"#group-{index}").is_visible()
    assert page.locator("input:visible, button:visible").count() == 0
    assert page.locator("#now-error").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_without_script_the_answer_and_all_candidates_are_shown(show, record):
    page = show(record, java_script_enabled=False)
    assert page.get_by_text(record["verdict"][0]).is_visible()
    assert page.get_by_text("The script of this page does not run here").is_visible()
    for index in range(len(record["groups"])):
        assert page.locator(f"#group-{index} table").first.is_visible()
    assert page.locator("input:visible, select:visible").count() == 0


def test_the_policy_refuses_what_would_leave_the_page(show, browser, record, tmp_path):
    page = browser.new_page()
    file = tmp_path / "other.html"
    file.write_text(page_html(record), encoding="utf-8")
    page.goto(file.as_uri())
    refused = page.evaluate(
        """async () => {
          const seen = [];
          addEventListener("securitypolicyviolation", (e) => seen.push(e.effectiveDirective));
          await fetch("http://nowhere.invalid/").catch(() => {});
          const image = new Image();
          image.src = "http://nowhere.invalid/x.png";
          await new Promise((done) => { image.onerror = done; });
          return seen;
        }"""
    )
    assert sorted(refused) == ["connect-src", "img-src"]
    page.close()
    show(record)
