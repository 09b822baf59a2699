"""A real Chromium for the tests of the report page."""

import shutil
from collections.abc import Callable, Iterator
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


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a record's page; at the end nothing may have been asked for and nothing complained."""
    complaints: list[str] = []
    requests: list[str] = []
    contexts: list[Any] = []
    file = tmp_path / "report.html"

    def opened(
        record: dict[str, Any] | Path, width: int = 1280, told: Any = None, **options: Any
    ) -> Any:
        text = record.read_text("utf-8") if isinstance(record, Path) else page_html(record, told)
        file.write_text(text, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda failure: complaints.append(str(failure)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
    assert set(requests) == {file.as_uri()}


@pytest.fixture
def page(show: Callable[..., Any], record: dict[str, Any]) -> Any:
    """The page of those two groups, open."""
    return show(record)
