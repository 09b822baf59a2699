"""A real Chromium for the tests of the report page."""

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lotr_tn.report.page import page_html
from tests.report.page_records import demo_record

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NAMES = ("gate_proj", "q_proj")


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium without a window; tests that need it skip where there is none."""
    reason = "playwright is not installed: pip install playwright"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    found = [path for name in BROWSERS if (path := shutil.which(name))]
    if not found:
        pytest.skip(f"no browser found on the PATH; any of {', '.join(BROWSERS)} would do")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=found[0], args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def record() -> dict[str, Any]:
    """An analysis of two groups of the demo adapter."""
    return demo_record(NAMES)


@pytest.fixture(scope="package")
def window(browser: Any) -> Callable[[dict[str, Any]], Any]:
    """Gives the window of some options: each is opened once, and each test loads its own page."""

    @cache
    def opened(options: tuple[tuple[str, Any], ...]) -> Any:
        page = browser.new_context(**dict(options)).new_page()
        page.set_default_timeout(10_000)
        return page

    return lambda options: opened(tuple(options.items()))


@pytest.fixture
def show(window: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a record's page; at the end nothing may have been asked for and nothing complained."""
    complaints: list[str] = []
    requests: list[str] = []
    used: list[Any] = []
    file = tmp_path / "report.html"
    heard = {
        "console": lambda message: complaints.append(message.text),
        "pageerror": lambda failure: complaints.append(str(failure)),
        "dialog": lambda dialog: complaints.append(dialog.message),
        "request": lambda request: requests.append(request.url),
    }

    def opened(
        record: dict[str, Any] | Path, width: int = 1280, told: Any = None, **options: Any
    ) -> Any:
        text = record.read_text("utf-8") if isinstance(record, Path) else page_html(record, told)
        file.write_text(text, encoding="utf-8")
        page = window(options)
        page.set_viewport_size({"width": width, "height": 800})
        if page not in used:
            used.append(page)
            for event, listener in heard.items():
                page.on(event, listener)
        page.goto(file.as_uri())
        return page

    yield opened
    for page in used:
        page.emulate_media(media="null")
        for event, listener in heard.items():
            page.remove_listener(event, listener)
    assert complaints == []
    assert set(requests) == {file.as_uri()}


@pytest.fixture
def page(show: Callable[..., Any], record: dict[str, Any]) -> Any:
    """The page of those two groups, open."""
    return show(record)
