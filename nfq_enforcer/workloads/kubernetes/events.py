"""Events of the Kubernetes API: the reason for which a policy or a pod is refused, shown by ``kubectl describe``. Pure.

All nodes refuse a document for the same reason, and each tells it: the name of the event is the same on each node, so
the API server keeps the first and answers 409 to the others.
"""

import hashlib
from typing import Any

from nfq_enforcer.text import shorten
from nfq_enforcer.workloads.publisher import Data

_MAX_NAME = 200  # characters of the object's name in the event's; a name has at most 253
_MAX_MESSAGE = 1000  # characters; the API server takes 1,024


def refused(document: Data, reason: str, now: str) -> dict[str, Any]:
    """Return the event about a refused document; ``now`` is the time in RFC 3339."""
    meta = document["metadata"]
    version = meta.get("generation") or meta.get("resourceVersion")  # objects without a generation have no status
    mark = hashlib.sha256(f"{meta.get('uid')} {version} {reason}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": namespace_of(document), "name": f"{meta['name'][:_MAX_NAME]}.{mark}"},
        "involvedObject": {
            "apiVersion": document["apiVersion"],
            "kind": document["kind"],
            **{key: meta[key] for key in ("namespace", "name", "uid", "resourceVersion") if meta.get(key)},
        },
        "type": "Warning",
        "reason": "PolicyRefused",
        "message": shorten(reason, _MAX_MESSAGE),
        "source": {"component": "nfq-enforcer"},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def namespace_of(document: Data) -> str:
    """Return the namespace of the event: the object's, or ``default`` for an object of the whole cluster."""
    return str(document["metadata"].get("namespace") or "default")
