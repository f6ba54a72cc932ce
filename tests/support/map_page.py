"""Page of the service map for tests: ``nfq-enforcer ui`` as a process, and Chromium, driven by Playwright.

Chromium is that of the distribution: Playwright's own download is not needed.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Dialog, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
MISSING = None if CHROMIUM else "Chromium is not installed (make test)"
PATIENT = 20_000.0  # ms, for the page to show what it is sent
_START = 20.0  # s


class Troubles(list[str]):
    """Troubles of a page: errors and warnings on its console, exceptions, dialogs, requests to other hosts."""

    def watch(self, page: Page, url: str) -> None:
        """Collect the troubles of a page whose server has this address."""
        page.on("console", lambda message: self._add(message.type in ("error", "warning"), message.text))
        page.on("pageerror", lambda error: self.append(str(error)))
        page.on("dialog", self._dismiss)
        page.on("request", lambda request: self._add(not request.url.startswith(url), request.url))

    def _dismiss(self, dialog: Dialog) -> None:
        self.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _add(self, applies: bool, text: str) -> None:
        if applies:
            self.append(text)


@contextmanager
def serving(socket: Path, *options: str) -> Iterator[str]:
    """Run ``nfq-enforcer ui`` on a free port; yield the address of the page that it prints."""
    program = str(Path(sys.executable).with_name("nfq-enforcer"))
    command = [program, "ui", "--listen", "127.0.0.1:0", "--socket", str(socket), *options]
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


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run a headless Chromium; as root it has no sandbox of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
