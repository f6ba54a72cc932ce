"""Labels of this node, by which rules with ``nodeSelector`` select it: those of the configuration and of Kubernetes.

A label of the configuration counts before one of Kubernetes with the same key. The last labels of Kubernetes are saved:
a node that starts without the API server is selected by the same rules as before.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from nfq_enforcer.core.labels import Labels
from nfq_enforcer.state_file import replace_text

_log = logging.getLogger(__name__)


class NodeLabels:
    """Node labels: the present labels of this node, and those that Kubernetes has given it meanwhile."""

    def __init__(self, configured: Mapping[str, str], file: Path | None) -> None:
        """Take the labels of the configuration, and the file of those of Kubernetes; None: without Kubernetes."""
        self._configured = Labels.parse(configured)
        self._file = file
        self._given = self._read()
        self._enforced: Labels | None = None
        self._changed = asyncio.Event()

    def note(self, labels: Mapping[str, str]) -> None:
        """Take the labels that Kubernetes gives this node; they are saved and enforced soon."""
        self._given = dict(labels)
        self._changed.set()

    def present(self) -> Labels:
        """Return the present labels, which the caller enforces."""
        self._enforced = Labels.parse(self._given).union(self._configured)
        return self._enforced

    async def run(self, use: Callable[[Labels], Awaitable[None]]) -> None:
        """Save and enforce each change; never return."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await asyncio.to_thread(self._save)
            before = self._enforced
            if (labels := self.present()) != before:
                _log.info("the labels of this node are now %s", labels or "none")
                await use(labels)

    def _read(self) -> dict[str, str]:
        if self._file is None:
            return {}
        try:
            saved = dict(json.loads(self._file.read_text()))
            Labels.parse(saved)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            _log.error("%s cannot be read, so this node has no labels of Kubernetes yet: %s", self._file, error)
            return {}
        return saved

    def _save(self) -> None:
        if self._file is not None:
            try:
                replace_text(self._file, json.dumps(self._given))
            except OSError as error:
                _log.warning("the labels of this node cannot be saved in %s: %s", self._file, error.strerror)
