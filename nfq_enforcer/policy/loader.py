"""Files and folders of documents, loaded all or nothing.

Either every document of every file is good and they are returned, or DocumentErrors tells of all that is wrong in any
of them. ``-`` is the standard input. The only module of this package that reads files.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import Literal, NamedTuple, TypeVar

from nfq_enforcer.core.labels import DEFAULT_SOURCE, Label, Labels
from nfq_enforcer.errors import DocumentError, DocumentErrors
from nfq_enforcer.policy import yaml_source
from nfq_enforcer.policy.documents import Document, Endpoint, Namespace, PolicyDocument
from nfq_enforcer.policy.fields import ACCOUNT_KEY, NAMESPACE_KEY, NAMESPACE_LABELS, Address
from nfq_enforcer.policy.registry import KINDS, UNSUPPORTED_KINDS
from nfq_enforcer.policy.validation import Items, Part, unknown, validate
from nfq_enforcer.policy.yaml_source import Located

SUFFIXES = frozenset((".yaml", ".yml", ".json"))
PROBES = ".probes.json"  # what lies beside documents and is none
STANDARD_INPUT = Path("-")


Key = tuple[str, str, str]
"""Kind, namespace and name of a document."""


class File(NamedTuple):
    """A file of documents, read and not yet understood."""

    name: str
    text: str


@dataclass(frozen=True)
class Documents:
    """What was loaded, in the order of the files."""

    endpoints: tuple[Endpoint, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    policies: tuple[PolicyDocument, ...] = ()


@dataclass(frozen=True)
class Parsed:
    """A document and where its fields stand."""

    document: Document
    source: Located
    base: yaml_source.Path  # where it stands in its source: not at the root if it is an item of a List

    def error(self, path: yaml_source.Path, message: str) -> DocumentError:
        """Return the error that says this of a field of the document."""
        return self.source.error(self.base + path, message)


def load(paths: Iterable[Path], applied: Iterable[Parsed] = ()) -> Documents:
    """Return the documents of files and folders, and those ``applied`` beside them.

    Raise DocumentErrors with all that is wrong with any of them.
    """
    found, errors = _found(paths)
    parsed, more = _attempt(lambda path: _parse_file(_read_file(path)), found)
    parsed += applied
    _raise_any([*errors, *more, *_conflicts(parsed)])
    return gather(one.document for one in parsed)


def read(paths: Iterable[Path]) -> list[File]:
    """Return every file of documents that ``load`` would read; raise DocumentErrors for those that cannot be."""
    found, errors = _found(paths)
    files, more = _attempt(lambda path: [_read_file(path)], found)
    _raise_any([*errors, *more])
    return files


def parse_all(files: Iterable[File]) -> list[Parsed]:
    """Return the documents of files that belong together; raise DocumentErrors for all that is wrong with any."""
    parsed, errors = _attempt(_parse_file, files)
    _raise_any([*errors, *_conflicts(parsed)])
    return parsed


def gather(documents: Iterable[Document]) -> Documents:
    """Return the documents sorted by what they are, each sort in the order given."""
    given = tuple(documents)
    return Documents(
        tuple(one for one in given if isinstance(one, Endpoint)),
        tuple(one for one in given if isinstance(one, Namespace)),
        tuple(one for one in given if isinstance(one, PolicyDocument)),
    )


def parse(text: str, file: str) -> list[Parsed]:
    """Return the documents of a text, each item of a List as one; raise DocumentErrors for all that is wrong."""
    sources, errors = _attempt(partial(yaml_source.parse, file=file), [text])
    found, unlisted = _attempt(_items, sources)
    parsed, more = _attempt(_parsed, found)
    _raise_any([*errors, *unlisted, *more])
    return parsed


def endpoint_labels(endpoint: Endpoint, namespaces: Iterable[Namespace]) -> Labels:
    """Return all labels of an endpoint's document: its own, and those made from its namespace and service account."""
    own = Labels.parse(endpoint.metadata.labels)
    its = next((one for one in namespaces if one.name == endpoint.namespace), None)
    return all_labels(own, endpoint.namespace, endpoint.spec.service_account, its)


def all_labels(own: Labels, namespace: str, account: str, document: Namespace | None) -> Labels:
    """Return all labels of an endpoint: its own, and those made from its namespace and service account.

    Every namespace has the label ``kubernetes.io/metadata.name``, as in Kubernetes, whether it has a document or not.
    """
    inherited = Labels.parse(document.metadata.labels) if document else ()
    made = {
        NAMESPACE_KEY: namespace,
        ACCOUNT_KEY: account,
        f"{NAMESPACE_LABELS}kubernetes.io/metadata.name": namespace,
    }
    return Labels(
        (
            *own,
            *(Label(label.source, NAMESPACE_LABELS + label.key, label.value) for label in inherited),
            *(Label(DEFAULT_SOURCE, key, value) for key, value in made.items()),
        )
    )


Found = tuple[Located, yaml_source.Path, object]
A = TypeVar("A")
B = TypeVar("B")


def _attempt(step: Callable[[A], Iterable[B]], inputs: Iterable[A]) -> tuple[list[B], list[DocumentError]]:
    """Return what the step makes of all inputs it succeeds with, and the errors of the others."""
    results: list[B] = []
    errors: list[DocumentError] = []
    for one in inputs:
        try:
            results += step(one)
        except (DocumentError, DocumentErrors) as problem:
            errors += problem.errors
    return results, errors


def _raise_any(errors: list[DocumentError]) -> None:
    if errors:
        raise DocumentErrors(errors)


def _found(paths: Iterable[Path]) -> tuple[Iterable[Path], list[DocumentError]]:
    found, errors = _attempt(_files, paths)
    once: dict[str, Path] = {}  # a file may be given beside its folder
    for path in found:
        once.setdefault(os.path.realpath(path), path)
    return once.values(), errors


def _files(path: Path) -> list[Path]:
    if path == STANDARD_INPUT or not _is_folder(path):
        return [path]
    failed: list[OSError] = []
    found: list[Path] = []
    for folder, subfolders, names in os.walk(path, onerror=failed.append):
        # hidden names are no documents but what editors, git and mounted volumes keep beside them
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if _is_document(name)]
    _raise_any([_unreadable(error.filename, error) for error in failed])
    return sorted(found)


def _is_document(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(PROBES) and Path(name).suffix in SUFFIXES


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # reading it will say why
        return False


def _read_file(path: Path) -> File:
    if path == STANDARD_INPUT:
        return File("standard input", yaml_source.decode(sys.stdin.buffer.read(), "standard input"))
    try:
        if not S_ISREG(path.stat().st_mode):
            raise DocumentError(str(path), "neither a file nor a folder")
        return File(str(path), yaml_source.decode(path.read_bytes(), str(path)))
    except OSError as error:
        raise _unreadable(str(path), error) from None


def _parse_file(file: File) -> list[Parsed]:
    return parse(file.text, file.name)


def _unreadable(path: str, error: OSError) -> DocumentError:
    return DocumentError(path, f"cannot be read: {error.strerror}")


class _List(Part):
    """Several documents in one, as ``kubectl get -o yaml`` prints them."""

    api_version: Literal["v1"]
    kind: Literal["List"]
    metadata: object = None
    items: Items[object] = ()


def _items(source: Located) -> list[Found]:
    if not isinstance(source.data, dict) or source.data.get("kind") != "List":
        return [(source, (), source.data)]
    items = validate(_List, source.data, source).items
    return [(source, ("items", number), item) for number, item in enumerate(items)]


def _parsed(found: Found) -> list[Parsed]:
    source, base, data = found
    if not isinstance(data, dict):
        raise source.error(base, f"a document must be a mapping with apiVersion and kind; allowed: {_ALLOWED}")
    version, model = _kind(source, base, data)
    if data.get("apiVersion") != version:
        message = f"the apiVersion of {data['kind']} is {version}, not {data.get('apiVersion')}"
        raise source.error((*base, "apiVersion"), message)
    document = validate(model, data, source, base)
    document.at(f"{source.file}:{source.place(base).value.line}", data)
    return [Parsed(document, source, base)]


def _kind(source: Located, base: yaml_source.Path, data: dict[str, object]) -> tuple[str, type[Document]]:
    kind = data.get("kind")
    if kind is None:
        raise source.error((*base, "kind"), f"required field is missing; allowed: {_ALLOWED}")
    if not isinstance(kind, str):
        raise source.error((*base, "kind"), f"must be a string; allowed: {_ALLOWED}")
    if kind in UNSUPPORTED_KINDS:
        raise source.error((*base, "kind"), f"{kind} is not supported by this version; allowed: {_ALLOWED}")
    if kind not in KINDS:
        raise source.error((*base, "kind"), unknown(kind, KINDS, "kind", _ALLOWED))
    return KINDS[kind]


_ALLOWED = ", ".join(f"{kind} ({version})" for kind, (version, _) in KINDS.items())


def _conflicts(parsed: Iterable[Parsed]) -> Iterator[DocumentError]:
    named: dict[Key, Parsed] = {}
    owners: dict[Address, Parsed] = {}
    for one in parsed:
        document = one.document
        first = named.setdefault(document.key, one)
        if first is not one:
            yield one.error(("metadata", "name"), f"{_called(first)} is already defined in {first.document.origin}")
        elif isinstance(document, Endpoint):
            yield from _taken_addresses(one, document, owners)


def _taken_addresses(one: Parsed, endpoint: Endpoint, owners: dict[Address, Parsed]) -> Iterator[DocumentError]:
    for number, address in enumerate(endpoint.spec.ips):
        if address in owners:
            owner = owners[address]
            message = f"{address} already belongs to {_called(owner)}, defined in {owner.document.origin}"
            yield one.error(("spec", "ips", number), message)
        owners.setdefault(address, one)


def _called(parsed: Parsed) -> str:
    document = parsed.document
    return f"{document.kind} {document.namespace}/{document.name}".replace(" /", " ")
