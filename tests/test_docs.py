"""The built documentation in a real browser: it fits a phone and a desktop, and works offline."""

import functools
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PHONE, DESKTOP = 390, 1280
# What is wider than its place: the page itself; elements beyond its edge that no box scrolls, as boxes do
# with tables and code; and text that a box cuts off. A closed menu is outside of the page on purpose.
CUT = """() => {
  const wide = document.documentElement.clientWidth, found = [];
  if (document.scrollingElement.scrollWidth > wide) found.push("the page scrolls sideways");
  const name = e => `${e.tagName} ${e.className} ${e.textContent.trim().slice(0, 60)}`;
  const boxed = e => {
    for (let up = e.parentElement; up; up = up.parentElement)
      if (getComputedStyle(up).overflowX !== "visible") return true;
    return false;
  };
  for (const e of document.querySelectorAll("body *")) {
    const box = e.getBoundingClientRect(), overflow = getComputedStyle(e).overflowX;
    const shown = e.checkVisibility({opacityProperty: true, visibilityProperty: true});
    if (!shown || !box.width || box.right <= 0) continue;
    if (box.right > wide + 1 && !boxed(e)) found.push(`beyond the edge: ${name(e)}`);
    if (["hidden", "clip"].includes(overflow) && e.scrollWidth > e.clientWidth + 1 && e.textContent.trim())
      found.push(`cut off: ${name(e)}`);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[tuple[str, list[str]]]:
    """The address at which the documentation is served, and its pages."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", folder]
    subprocess.run([*map(str, argv)], cwd=ROOT, check=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pages = sorted(page.parent.relative_to(folder).as_posix() for page in folder.rglob("index.html"))
    yield f"http://127.0.0.1:{server.server_port}/", pages
    server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_pages_fit_a_phone_and_a_desktop(site, chromium, width):
    address, pages = site
    sources = [*(ROOT / "docs").rglob("*.md")]
    assert len(pages) == len(sources)
    seen = chromium.new_page(viewport={"width": width, "height": 844})
    problems, asked = [], set()
    seen.on("request", lambda request: asked.add(request.url.split("/")[2]))
    seen.on("pageerror", lambda error: problems.append((seen.url, str(error))))
    for page in pages:
        seen.goto(f"{address}{page}/", wait_until="load")
        problems += [(page, problem) for problem in seen.evaluate(CUT)]
    seen.close()
    assert problems == []
    assert asked == {address.split("/")[2]}  # nothing from elsewhere: the pages work offline


@pytest.mark.slow
def test_the_menu_of_a_phone_shows_every_name(site, chromium):
    address, _ = site
    seen, shown = chromium.new_page(viewport={"width": PHONE, "height": 844}), []
    for menu in (None, "Tutorials", "Methods", "How to", "Reference"):
        seen.goto(address)
        seen.click("label.md-header__button[for=__drawer]")
        if menu:
            seen.click(f"label.md-nav__link:has-text('{menu}')")
        seen.wait_for_timeout(500)  # it slides in
        names = seen.evaluate("""() => [...document.querySelectorAll(".md-sidebar--primary .md-nav__link")]
            .map(e => [e.textContent.trim(), e.getBoundingClientRect(), e.scrollWidth > e.clientWidth + 1])
            .filter(([, box]) => box.width && box.left >= 0 && box.left < 242)
            .map(([name, box, cut]) => [name, cut || box.right > 242 + 1])""")
        shown += [name for name, _ in names]
        assert [name for name, cut in names if cut] == []
    seen.close()
    assert {"Install", "A smooth controller at 200 Hz", "PAVE", "Export a policy", "Fields"} <= {*shown}
