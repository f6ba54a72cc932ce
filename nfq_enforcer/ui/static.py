"""Assets of the page: each file of the folder ``assets``, read once, by the path of its URL."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".svg": "image/svg+xml",
}


class Asset(NamedTuple):
    """Asset: the content of a file, and its media type."""

    body: bytes
    content_type: str


def load() -> dict[str, Asset]:
    """Return the assets by path, as in ``/assets/page.js``; the page itself is at ``/``."""
    found: dict[str, Asset] = {}
    _collect(files("nfq_enforcer.ui") / "assets", "/assets", found)
    found["/"] = found.pop("/assets/index.html")
    return found


def _collect(folder: Traversable, path: str, found: dict[str, Asset]) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            _collect(entry, f"{path}/{entry.name}", found)
        elif content_type := next((kind for end, kind in _TYPES.items() if entry.name.endswith(end)), None):
            found[f"{path}/{entry.name}"] = Asset(entry.read_bytes(), content_type)
