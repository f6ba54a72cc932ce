"""Page of the service map for tests: ``nfq-enforcer ui`` as a process, and Chromium, driven by Playwright.

Chromium is that of the distribution: Playwright's own download is not needed.
"""

import io
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from matplotlib.image import imread
from playwright.async_api import Browser, ConsoleMessage, Dialog, Page, Request, Route, async_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
MISSING = None if CHROMIUM else "needs Chromium: make test installs it"
SIZE = {"width": 1280, "height": 800}
_START = 20.0  # s
_OPENED = "\nwindow.graphOfTest = graph;\n"  # the canvas has no element for each workload and edge


class Troubles(list[str]):
    """Troubles of a page: errors and warnings on its console, exceptions, dialogs, requests to other servers."""

    def watch(self, page: Page, url: str) -> None:
        """Collect the troubles of a page of the server at this address."""
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.append(f"exception: {error}"))
        page.on("dialog", self._dismiss)
        page.on("request", lambda request: self._request(request, url))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.append(f"{message.type}: {message.text}")

    async def _dismiss(self, dialog: Dialog) -> None:
        self.append(f"dialog: {dialog.message}")
        await dialog.dismiss()

    def _request(self, request: Request, url: str) -> None:
        if not request.url.startswith((url, "data:")):
            self.append(f"request: {request.url}")


@contextmanager
def serving(socket: Path, *options: str, listen: str = "127.0.0.1:0") -> Iterator[str]:
    """Run ``nfq-enforcer ui`` on a free port; yield the address of the page that it prints, and end it by SIGTERM."""
    program = str(Path(sys.executable).with_name("nfq-enforcer"))
    command = [program, "ui", "--listen", listen, "--socket", str(socket), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("service map: "), line
        yield line.split()[-1]
    finally:
        process.terminate()
        rest, _ = process.communicate(timeout=_START)
        assert (process.returncode, rest) == (0, "")


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a headless Chromium; as root it has no sandbox of its own."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def opened(browser: Browser, url: str, **context: Any) -> AsyncIterator[Page]:
    """Give the page in a browser of its own; at the end no trouble may have occurred."""
    troubles = Troubles()
    of_test = await browser.new_context(viewport=SIZE, **context)  # type: ignore[arg-type]
    try:
        page = await of_test.new_page()
        troubles.watch(page, url.partition("#")[0])
        await page.route("**/assets/page.js", _open_graph)
        await page.goto(url)
        yield page
        assert troubles == []
    finally:
        await of_test.close()


async def _open_graph(route: Route) -> None:
    response = await route.fetch()
    await route.fulfill(response=response, body=await response.text() + _OPENED)


async def place_on_canvas(page: Page, element_id: str) -> tuple[float, float]:
    """Return the place in the page at which the drawing has a workload, or the middle of an edge."""
    place: tuple[float, float] = await page.evaluate(
        """(id) => {
          const found = window.graphOfTest.cy.getElementById(id);
          const box = document.getElementById("map").getBoundingClientRect();
          const { x, y } = found.isNode() ? found.renderedPosition() : found.renderedMidpoint();
          return [box.x + x, box.y + y];
        }""",
        element_id,
    )
    return place


async def brightness(page: Page) -> float:
    """Return the mean brightness of the page, from 0 (black) to 1 (white)."""
    return float(imread(io.BytesIO(await page.screenshot()))[:, :, :3].mean())
