"""Endpoint documents of ``nfq-enforcer endpoint add``: made of its options, or read from files."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from nfq_enforcer.errors import BadInput, DocumentError, DocumentErrors
from nfq_enforcer.policy import loader
from nfq_enforcer.policy.documents import Endpoint
from nfq_enforcer.policy.inspection import ParsedDocument
from nfq_enforcer.policy.loader import File

_PORT = re.compile(r"(?P<name>[^=]*)=(?P<number>[0-9]{1,9})(?:/(?P<protocol>[A-Za-z]+))?")
_OPTIONS = {  # the option that sets a field of the document
    "metadata.name": "NAME",
    "metadata.namespace": "--namespace",
    "metadata.labels": "--label",
    "spec.ips": "--ip",
    "spec.node": "--node",
    "spec.interface": "--interface",
    "spec.serviceAccount": "--service-account",
    "spec.ports": "--port",
}


def document(metadata: Mapping[str, object], spec: Mapping[str, object]) -> File:
    """Return an Endpoint document as a file; raise BadInput with the option that set an invalid field."""
    spec = {key: value for key, value in spec.items() if value or key == "ips"}
    document = {"apiVersion": "nfq-enforcer.io/v1", "kind": "Endpoint", "metadata": metadata, "spec": spec}
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    try:
        loader.parse(text, "")
    except DocumentErrors as invalid:
        raise BadInput("\n".join(dict.fromkeys(map(_option_error, invalid.errors)))) from None
    return File("nfq-enforcer endpoint add", text)


def read(paths: Iterable[Path]) -> list[File]:
    """Read the files; raise BadInput unless they contain Endpoint documents only."""
    files = loader.read(paths)
    parsed = loader.parse_all(files)
    others = [_not_an_endpoint(one) for one in parsed if not isinstance(one.document, Endpoint)]
    if others:
        raise DocumentErrors(others)
    if not parsed:
        raise BadInput("there is no Endpoint document in what -f names")
    return files


def labels(options: Iterable[str]) -> dict[str, str]:
    """Return labels written as KEY=VALUE; raise BadInput for others, and for a key with two values."""
    found: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise BadInput(f"--label: '{option}' is not a label; allowed: KEY=VALUE, as in role=frontend")
        if found.setdefault(key, value) != value:
            raise BadInput(f"--label: '{key}' is given two values, '{found[key]}' and '{value}'; one is allowed")
    return found


def port(option: str) -> dict[str, object]:
    """Return a named port written as NAME=NUMBER/PROTOCOL; raise BadInput for another text."""
    match = _PORT.fullmatch(option)
    if match is None:
        allowed = "allowed: NAME=NUMBER with /TCP (the default), /UDP or /SCTP, as in http=80/TCP"
        raise BadInput(f"--port: '{option}' is not a named port; {allowed}")
    return {"name": match["name"], "port": int(match["number"]), "protocol": (match["protocol"] or "TCP").upper()}


def _option_error(error: DocumentError) -> str:
    for field, option in _OPTIONS.items():
        if error.field == field or error.field.startswith((f"{field}.", f"{field}[")):
            return f"{option}: {error.message}"
    return error.message


def _not_an_endpoint(parsed: ParsedDocument) -> DocumentError:
    kind = parsed.document.kind
    return parsed.error(
        ("kind",), f"{kind} is not allowed here; allowed: Endpoint ('policy load' takes the other kinds)"
    )
