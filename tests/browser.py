"""A real browser for tests of pages: the system's Chromium, headless, driven by Playwright."""

import functools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    "These tests open pages in Chromium, and none is installed; on Debian or Ubuntu: "
    "sudo apt-get install -y chromium (`make test` does it where it may)."
)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests. If none is installed, tests are skipped; with the variable CI they fail."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Root can start it only without a sandbox; containers have little shared memory.
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


class Visitor:
    """Opens files, and collects as `problems` what pages must not do: console output, dialogs, requests."""

    def __init__(self, browser: Any):
        self.browser, self.pages, self.problems = browser, [], []

    def __call__(self, file: Path | str, width: int = 1200, dark: bool = False, phone: bool = False) -> Any:
        """Open a file and return Playwright's page, once its charts are drawn; `phone`: a touch screen."""
        size, scheme = {"width": width, "height": 900}, "dark" if dark else "light"
        touch = {"has_touch": phone, "is_mobile": phone}
        page = self.browser.new_page(viewport=size, color_scheme=scheme, **touch)
        page.wait_for_function = functools.partial(until, page)
        self.pages.append(page)
        address = Path(file).resolve().as_uri()
        page.on("console", lambda said: self.note(f"{said.type} in the console: {said.text}"))
        page.on("pageerror", lambda error: self.note(f"error: {error}"))
        page.on("request", lambda request: self.requested(request.url, address))
        page.on("dialog", lambda dialog: (self.note(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(address)
        page.wait_for_selector("html[data-ready]", timeout=30_000)
        return page

    def note(self, problem: str) -> None:
        self.problems.append(problem)

    def requested(self, url: str, address: str) -> None:
        if url.partition("#")[0] != address and not url.startswith(("blob:", "data:")):
            self.note(f"request of {url}")


def swipe(page: Any, selector: str, up: int = 200) -> float:
    """Swipe upwards over an element of a page on a phone. Returns by how many pixels the page scrolled."""
    page.evaluate("(s) => document.querySelector(s).scrollIntoView({block: 'center'})", selector)
    box, before = page.query_selector(selector).bounding_box(), page.evaluate("scrollY")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    finger = page.context.new_cdp_session(page)
    finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for k in range(1, 11):
        points = [{"x": x, "y": y - k * up / 10}]
        finger.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": points})
        page.wait_for_timeout(16)
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_timeout(100)
    return page.evaluate("scrollY") - before


def until(page: Any, condition: str, arg: Any = None, timeout: float = 10_000) -> None:
    """Wait until a condition in the page is true, in place of `page.wait_for_function`.

    Playwright's own function evaluates strings inside the page, which our pages' content policy forbids.
    """
    end = time.monotonic() + timeout / 1000
    while not page.evaluate(condition, arg):
        assert time.monotonic() < end, f"never came true: {condition}"
        page.wait_for_timeout(50)


@pytest.fixture
def visit(chromium: Any) -> Iterator[Visitor]:
    """`visit(file, width=1200, dark=False)` opens a page; the test fails if a page had problems."""
    visitor = Visitor(chromium)
    yield visitor
    for page in visitor.pages:
        page.close()
    assert visitor.problems == []
