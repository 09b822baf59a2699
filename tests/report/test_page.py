"""The report page as text: what it holds, how large it is, and that it lets nothing in or out."""

import base64
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from lotr_tn.report.numbers import error
from lotr_tn.report.page import page_html
from lotr_tn.report.page.payload import packed
from tests.report.page_records import (
    empty_group,
    llama_record,
    made_up_group,
    record_of,
)

VOID = {"meta", "link", "input", "br"}
NASTY = (
    '</script><script>alert(1)</script><!--put script--> & "\u2028" <img src=x onerror=alert(2)>'
)


class Reader(HTMLParser):
    """Collects elements, ids and text; the tags must close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


def part(page: str, pattern: str) -> str:
    found = re.search(pattern, page, re.DOTALL)
    assert found is not None
    return found[1]


def data_of(page: str) -> dict[str, Any]:
    return json.loads(part(page, r'<script type="application/json" id="record">(.*?)</script>'))


def unpacked(packed_numbers: dict[str, Any]) -> np.ndarray:
    kind = {32: "<f4", 64: "<f8"}[packed_numbers["bits"]]
    return np.frombuffer(base64.b64decode(packed_numbers["data"]), dtype=kind)


@pytest.fixture(scope="module")
def page(record: dict[str, Any]) -> str:
    return page_html(record)


def test_an_adapter_of_a_large_model_stays_below_two_megabytes():
    record = llama_record()
    surfaces = [group["surface"] for group in record["groups"]]
    assert [len(s["r1"]) for s in surfaces] == [97] * 7
    assert max(s["r1"][-1] for s in surfaces) == 512
    assert len(page_html(record).encode()) < 2_000_000


def test_two_hundred_layers_stay_below_two_megabytes():
    groups = [made_up_group(name, (200, 512, 384), 8, 97) for name in ("q", "v")]
    assert len(page_html(record_of(groups, sources=["deep"])).encode()) < 2_000_000


def test_the_same_record_gives_the_same_page(record, page):
    assert page_html(json.loads(json.dumps(record))) == page


def test_the_page_names_no_address(page):
    assert not re.search(r"(?:https?|wss?|ftp)://|@import|url\((?!#)", page)
    for tag, attributes in read(page).elements:
        assert not attributes.get("src"), tag
        assert attributes.get("href", "#").startswith(("#", "data:,")), tag


def test_the_policy_allows_this_script_and_this_style_only(page):
    policy = part(page, r'Content-Security-Policy" content="([^"]*)"')
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert set(rules) == {
        "default-src",
        "script-src",
        "style-src",
        "img-src",
        "base-uri",
        "form-action",
    }
    for name, text in (
        ("script-src", part(page, r"<script>(.*?)</script>")),
        ("style-src", part(page, r"<style>(.*?)</style>")),
    ):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert not [attributes for _, attributes in read(page).elements if "style" in attributes]


def test_ids_are_unique_and_every_control_has_a_label(page):
    elements = read(page).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {attributes["for"] for tag, attributes in elements if tag == "label"}
    controls = {a["id"] for tag, a in elements if tag in ("input", "select")}
    assert controls == labelled
    named = {a["aria-labelledby"] for _, a in elements if "aria-labelledby" in a}
    assert named <= set(ids)
    languages = [attributes.get("lang") for tag, attributes in elements if tag == "html"]
    assert languages == ["en"]


def test_headings_do_not_skip_a_level(page):
    levels = [int(tag[1]) for tag, _ in read(page).elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_the_answer_and_all_candidates_stand_in_the_html_itself(record, page):
    text = read(page).text
    for sentence in record["verdict"]:
        assert sentence in text
    assert "each group within a relative error of 0.05" in text
    for group in record["groups"]:
        table = part(
            page, rf'<section class="group" [^>]*>\n<h3[^>]*>{group["name"]}</h3>(.*?)</sec'
        )
        rows = re.findall(r"<tr.*?</tr>", part(table, r"<tbody>(.*?)</tbody>"), re.DOTALL)
        assert len(rows) == len(group["candidates"])
        for candidate, row in zip(group["candidates"], rows, strict=True):
            cells = [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td.*?</td>", row)]
            assert cells[:2] == [error(candidate["relative_error"]), f"{candidate['params']:,}"]
            assert cells[4] == candidate["ranks"]
            recommended = candidate["format"] == group["recommended"]
            assert ("✓ recommended" in row) == recommended
    for way in record["stackings"]:
        assert way["label"] in text
    assert "not measured: it would take too long" in text


def test_clusters_name_neighbours_as_a_range(record):
    group = dict(
        record["groups"][0], clusters=[{"layers": [0, 1, 2, 4, 6, 7], "format": "x", "params": 5}]
    )
    text = read(page_html(record | {"groups": [group]})).text
    assert "0 to 2, 4, 6, 7 (6)" in text


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("rel_error", 0.05, "each group within a relative error of 0.05"),
        ("total_error", 0.1, "all groups together within a relative error of 0.1"),
        ("max_params", 210000, "at most 210,000 parameters"),
        ("max_bytes", 840000, "at most 840 kB"),
    ],
)
def test_questions_are_said_in_words(record, kind, value, words):
    text = read(page_html(record | {"question": {"kind": kind, "value": value}})).text
    assert words in text


def test_an_unmet_question_says_so(record, page):
    assert "✓ met" in read(page).text
    assert "✗ not met" in read(page_html(record | {"met": False})).text


def test_nothing_of_a_record_becomes_markup(record, page):
    group = dict(record["groups"][0], name=NASTY, advice=NASTY, labels=[NASTY] * 8)
    group["candidates"] = [c | {"label": NASTY} for c in group["candidates"]]
    nasty = page_html(
        record | {"sources": [NASTY], "base_model": NASTY, "verdict": [NASTY], "groups": [group]}
    )
    reader = read(nasty)
    assert [tag for tag, _ in reader.elements].count("script") == 2
    assert "img" not in [tag for tag, _ in reader.elements]
    assert data_of(nasty)["groups"][0]["name"] == NASTY
    assert part(nasty, r"<script>(.*?)</script>") == part(page, r"<script>(.*?)</script>")
    assert reader.text.count(NASTY) >= 10


def test_numbers_that_are_not_finite_are_refused(record):
    with pytest.raises(ValueError, match="JSON compliant"):
        page_html(record | {"seconds": float("nan")})


def test_a_group_without_a_surface_has_none_in_its_data(record):
    group = {key: value for key, value in record["groups"][0].items() if key != "surface"}
    data = data_of(page_html(record | {"groups": [group]}))
    assert "surface" not in data["groups"][0]


def test_missing_numbers_are_dashes(record):
    group = dict(record["groups"][0], norm=None, break_even_layers=None)
    group["candidates"] = [c | {"ratio": None, "relative_error": None} for c in group["candidates"]]
    whole = record["recommended"] | {"relative_error": None}
    text = read(
        page_html(record | {"groups": [group], "recommended": whole, "base_model": None})
    ).text
    assert "not named" in text
    assert "no number of layers" in text
    assert "None" not in text


def test_a_record_without_groups_is_a_page():
    text = read(page_html(record_of([], sources=["empty"]))).text
    assert "This analysis has no groups." in text


def test_a_group_of_zero_updates_is_a_page():
    page = page_html(record_of([empty_group()], sources=["empty"]))
    surface = data_of(page)["groups"][0]["surface"]
    assert unpacked(surface["errors"]).tolist() == [0.0]


def test_surfaces_keep_the_digits_that_are_shown(record, page):
    for group, kept in zip(record["groups"], data_of(page)["groups"], strict=True):
        assert kept["surface"]["r1"] == group["surface"]["r1"]
        for name in ("errors", "lower"):
            exact = np.ravel(group["surface"][name])
            found = unpacked(kept["surface"][name])
            assert [error(x) for x in found.tolist()] == [error(x) for x in exact.tolist()]
        exact = [x for point in group["front"] for x in point["layer_errors"]]
        found = unpacked(kept["layer_errors"])
        assert [error(x) for x in found.tolist()] == [error(x) for x in exact]


def test_single_precision_is_moved_to_the_side_of_the_digits_shown():
    halfway = [x + step for x in np.arange(1000, 10000) + 0.5 for step in (-1e-10, 0.0, 1e-10)]
    edges = [*(np.array(halfway) / 1e5).tolist(), 1e-5, 0.09999995, 0.15625, 0.99995, 0.0, 1.0]
    plain = np.array(edges, dtype=np.float32).tolist()
    assert [error(x) for x in plain] != [error(x) for x in edges]  # plain rounding would show it
    kept = packed(edges)
    assert kept["bits"] == 32
    found = unpacked(kept)
    assert [error(x) for x in found.tolist()] == [error(x) for x in edges]
    np.testing.assert_allclose(found, edges, rtol=2e-7)


def test_numbers_too_small_for_single_precision_keep_their_digits():
    kept = packed([1e-60, 0.25, None])
    assert kept["bits"] == 64
    np.testing.assert_array_equal(unpacked(kept), [1e-60, 0.25, np.nan])


def test_overlap_is_its_lower_triangle_in_hundredths(record):
    matrix = [[1.0, 0.285, 0.374999], [0.285, 1.0, None], [0.374999, None, 1.0]]
    group = dict(
        record["groups"][0], overlap={"left": matrix, "right": matrix, "chance": [0.1, 0.1]}
    )
    data = data_of(page_html(record | {"groups": [group]}))
    kept = base64.b64decode(data["groups"][0]["overlap"]["left"])
    assert list(kept) == [100, 28, 100, 37, 255, 100]
