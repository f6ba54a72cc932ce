"""Loader of documents from files and folders, all or nothing.

The loader returns the documents of every file, or raises DocumentErrors with all errors of all documents if any is
invalid. ``-`` is the standard input. No other module of this package reads files.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple, TypeVar

from nfq_enforcer.core.labels import DEFAULT_SOURCE, Label, Labels
from nfq_enforcer.errors import BadInput, DocumentError, DocumentErrors
from nfq_enforcer.policy import templates, yaml_source
from nfq_enforcer.policy.documents import Document, Endpoint, Namespace, PolicyDocument
from nfq_enforcer.policy.fields import (
    ACCOUNT_KEY,
    CLUSTER_KEY,
    DEFAULT_CLUSTER,
    NAMESPACE_KEY,
    NAMESPACE_LABELS,
    AddressField,
)
from nfq_enforcer.policy.registry import KINDS, LISTS, is_other_kind, is_unsupported, similar_kinds
from nfq_enforcer.policy.validation import Items, Part, validate
from nfq_enforcer.policy.yaml_source import YamlDocument

SUFFIXES = frozenset((".yaml", ".yml", ".json"))
PROBES = ".probes.json"  # suffix of probe files, which stand beside documents and are not loaded
STANDARD_INPUT = Path("-")


DocumentKey = tuple[str, str, str]
"""Kind, namespace and name of a document."""


class File(NamedTuple):
    """File: the name and text of a file of documents, not yet parsed."""

    name: str
    text: str


@dataclass(frozen=True)
class Documents:
    """Documents: the loaded documents by category, in the order of the files."""

    endpoints: tuple[Endpoint, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    policies: tuple[PolicyDocument, ...] = ()


@dataclass(frozen=True)
class ParsedDocument:
    """ParsedDocument: a document, with the places of its fields for error messages."""

    document: Document
    source: YamlDocument
    base: yaml_source.FieldPath  # path of the document in its source: not the root if it is an item of a List

    def error(self, path: yaml_source.FieldPath, message: str) -> DocumentError:
        """Return an error with this message about a field of the document."""
        return self.source.error(self.base + path, message)


@dataclass
class Inspection:
    """Inspection: the valid documents of some files, the errors of the others, and the number of documents."""

    parsed: list[ParsedDocument] = field(default_factory=list)
    errors: list[DocumentError] = field(default_factory=list)
    total: int = 0  # a file that cannot be read or is no YAML counts as one document
    refused: int = 0
    ignored: int = 0  # of other kinds

    def add(self, other: "Inspection") -> None:
        """Add the documents of another inspection."""
        self.parsed += other.parsed
        self.errors += other.errors
        self.total += other.total
        self.refused += other.refused
        self.ignored += other.ignored


def load(
    paths: Iterable[Path], applied: Iterable[ParsedDocument] = (), *, ignore_other_kinds: bool = False
) -> Documents:
    """Return the documents of files and folders, together with the ``applied`` ones.

    Raise DocumentErrors with all errors of all documents. ``ignore_other_kinds``: leave out documents of kinds that
    have nothing to do with policy.
    """
    inspection = inspect(paths, applied, ignore_other_kinds=ignore_other_kinds)
    _raise_any(inspection.errors)
    return group_documents(item.document for item in inspection.parsed)


def inspect(
    paths: Iterable[Path], applied: Iterable[ParsedDocument] = (), *, ignore_other_kinds: bool = False
) -> Inspection:
    """Return the documents of files and folders with every error in them; of ``applied``, only conflicts are errors."""
    file_paths, errors = _files(paths)
    inspection = Inspection([], errors, len(errors), len(errors))
    for path in file_paths:
        try:
            inspection.add(_inspect_file(_read_file(path), ignore_other_kinds))
        except DocumentError as error:
            inspection.add(Inspection([], [error], 1, 1))
    inspection.parsed += applied
    conflicts = list(_conflicts(inspection.parsed))
    inspection.errors += conflicts
    inspection.refused += len(conflicts)
    return inspection


def read(paths: Iterable[Path]) -> list[File]:
    """Return every file of documents that ``load`` reads; raise DocumentErrors for unreadable ones."""
    file_paths, errors = _files(paths)
    files, more = _attempt(lambda path: [_read_file(path)], file_paths)
    _raise_any([*errors, *more])
    return files


def parse_all(files: Iterable[File], *, ignore_other_kinds: bool = False) -> list[ParsedDocument]:
    """Return the documents of one set of files; raise DocumentErrors with all errors, conflicts included."""
    inspection = Inspection()
    for file in files:
        inspection.add(_inspect_file(file, ignore_other_kinds))
    _raise_any([*inspection.errors, *_conflicts(inspection.parsed)])
    return inspection.parsed


def from_data(documents: Iterable[Mapping[str, Any]]) -> Documents:
    """Return documents of their data, which an agent has validated before; raise BadInput for an unknown kind."""
    return group_documents(map(_from_data, documents))


def _from_data(data: Mapping[str, Any]) -> Document:
    if data.get("kind") not in KINDS:
        raise BadInput(f"a document has the kind {data.get('kind')!r}, which this version does not have")
    document = KINDS[data["kind"]][1].model_validate(data)
    document.set_source("", data)
    return document


def group_documents(documents: Iterable[Document]) -> Documents:
    """Return the documents by category: endpoints, namespaces and policies, each in the given order."""
    ordered = tuple(documents)
    return Documents(
        tuple(document for document in ordered if isinstance(document, Endpoint)),
        tuple(document for document in ordered if isinstance(document, Namespace)),
        tuple(document for document in ordered if isinstance(document, PolicyDocument)),
    )


def parse(text: str, file: str) -> list[ParsedDocument]:
    """Return the documents of a text, each item of a List as one document; raise DocumentErrors with all errors."""
    inspection = _inspect_file(File(file, text), ignore_other_kinds=False)
    _raise_any(inspection.errors)
    return inspection.parsed


def _inspect_file(file: File, ignore_other_kinds: bool) -> Inspection:
    try:
        sources = yaml_source.parse(file.text, file.name)
    except DocumentError as error:
        return Inspection([], [templates.explain_syntax_error(error, file.text)], 1, 1)
    items, errors = _attempt(_items, sources)
    refused = lists = len({(error.line, error.column) for error in errors})
    parsed: list[ParsedDocument] = []
    ignored = 0
    for item in items:
        if ignore_other_kinds and is_other_kind(item[2]):
            ignored += 1
            continue
        try:
            parsed.append(_parse_item(item))
        except (DocumentError, DocumentErrors) as error:
            errors += error.errors
            refused += 1
    return Inspection(parsed, errors, len(items) + lists, refused, ignored)


def endpoint_labels(endpoint: Endpoint, namespaces: Iterable[Namespace], cluster: str = DEFAULT_CLUSTER) -> Labels:
    """Return all labels of an endpoint document: its own, and those derived from cluster, namespace and account."""
    own = Labels.parse(endpoint.metadata.labels)
    namespace = next((candidate for candidate in namespaces if candidate.name == endpoint.namespace), None)
    return compose_labels(own, endpoint.namespace, endpoint.spec.service_account, namespace, cluster)


def compose_labels(
    own: Labels, namespace: str, account: str, document: Namespace | None, cluster: str = DEFAULT_CLUSTER
) -> Labels:
    """Return all labels of an endpoint: its own, and those derived from its cluster, namespace and service account.

    Every namespace has the label ``kubernetes.io/metadata.name``, as in Kubernetes, with or without a document.
    """
    inherited = Labels.parse(document.metadata.labels) if document else ()
    derived = {
        NAMESPACE_KEY: namespace,
        ACCOUNT_KEY: account,
        CLUSTER_KEY: cluster,
        f"{NAMESPACE_LABELS}kubernetes.io/metadata.name": namespace,
    }
    return Labels(
        (
            *own,
            *(Label(label.source, NAMESPACE_LABELS + label.key, label.value) for label in inherited),
            *(Label(DEFAULT_SOURCE, key, value) for key, value in derived.items()),
        )
    )


_Item = tuple[YamlDocument, yaml_source.FieldPath, object]
"""A YAML document, the path of a policy document in it, and that document's data."""

_Input = TypeVar("_Input")
_LoaderOutput = TypeVar("_LoaderOutput")


def _attempt(
    step: Callable[[_Input], Iterable[_LoaderOutput]], inputs: Iterable[_Input]
) -> tuple[list[_LoaderOutput], list[DocumentError]]:
    """Return the results of a step for the valid inputs, and the errors of the others."""
    results: list[_LoaderOutput] = []
    errors: list[DocumentError] = []
    for item in inputs:
        try:
            results += step(item)
        except (DocumentError, DocumentErrors) as error:
            errors += error.errors
    return results, errors


def _raise_any(errors: list[DocumentError]) -> None:
    if errors:
        raise DocumentErrors(errors)


def _files(paths: Iterable[Path]) -> tuple[Iterable[Path], list[DocumentError]]:
    files, errors = _attempt(_files_of, paths)
    by_real_path: dict[str, Path] = {}  # a file may be given together with its folder
    for path in files:
        by_real_path.setdefault(os.path.realpath(path), path)
    return by_real_path.values(), errors


def _files_of(path: Path) -> list[Path]:
    if path == STANDARD_INPUT or not _is_folder(path):
        return [path]
    failed: list[OSError] = []
    files: list[Path] = []
    for folder, subfolders, names in os.walk(path, onerror=failed.append):
        # editors, git and mounted volumes keep files of their own with hidden names beside documents
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [Path(folder, name) for name in names if _is_document(name)]
    _raise_any([_unreadable(error.filename, error) for error in failed])
    return sorted(files)


def _is_document(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(PROBES) and Path(name).suffix in SUFFIXES


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # reading the path raises the error with its reason
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


def _unreadable(path: str, error: OSError) -> DocumentError:
    return DocumentError(path, f"cannot be read: {error.strerror}")


class _List(Part):
    """List: several documents in one, as ``kubectl get -o yaml`` and the API print them."""

    api_version: str
    kind: str
    metadata: object = None
    items: Items[object] = ()


def _items(source: YamlDocument) -> list[_Item]:
    """Return the items of a list, each with the list's kind and version if it names none, or the document itself."""
    kind = source.data.get("kind") if isinstance(source.data, dict) else None
    if not isinstance(kind, str) or kind not in LISTS:
        return [(source, (), source.data)]
    found = validate(_List, source.data, source, explain=True)
    version, item_kind = LISTS[kind]
    if found.api_version != version:
        raise source.error(("apiVersion",), f"the apiVersion of {kind} is {version}, not {found.api_version}")
    made = {"apiVersion": version, "kind": item_kind} if item_kind else {}
    return [
        (source, ("items", number), {**made, **item} if isinstance(item, dict) and "kind" not in item else item)
        for number, item in enumerate(found.items)
    ]


def _parse_item(item: _Item) -> ParsedDocument:
    source, base, data = item
    if not isinstance(data, dict):
        raise source.error(base, f"a document must be a mapping with apiVersion and kind; allowed: {_ALLOWED}")
    version, model = _kind(source, base, data)
    if data.get("apiVersion") != version:
        message = f"the apiVersion of {data['kind']} is {version}, not {data.get('apiVersion')}"
        raise source.error((*base, "apiVersion"), message)
    document = validate(model, data, source, base, explain=True)
    document.set_source(f"{source.file}:{source.place(base).value.line}", data)
    return ParsedDocument(document, source, base)


def _kind(source: YamlDocument, base: yaml_source.FieldPath, data: dict[str, object]) -> tuple[str, type[Document]]:
    kind = data.get("kind")
    if kind is None:
        raise source.error((*base, "kind"), f"required field is missing; allowed: {_ALLOWED}")
    if not isinstance(kind, str):
        raise source.error((*base, "kind"), f"must be a string; allowed: {_ALLOWED}")
    if kind in KINDS:
        return KINDS[kind]
    if is_unsupported(kind):
        raise source.error((*base, "kind"), f"{kind} is not supported by this version; allowed: {_ALLOWED}")
    close = similar_kinds(kind, data.get("apiVersion"))
    hint = f"did you mean '{close[0]}'? " if close else ""
    message = templates.sentence(kind) or f"unknown kind '{kind}'; {hint}allowed: {_ALLOWED}"
    raise source.error((*base, "kind"), message)


_ALLOWED = ", ".join(f"{kind} ({version})" for kind, (version, _) in KINDS.items())


def _conflicts(parsed: Iterable[ParsedDocument]) -> Iterator[DocumentError]:
    by_key: dict[DocumentKey, ParsedDocument] = {}
    owners: dict[AddressField, ParsedDocument] = {}
    for item in parsed:
        document = item.document
        first = by_key.setdefault(document.key, item)
        if first is not item:
            yield item.error(
                ("metadata", "name"), f"{first.document.title} is already defined in {first.document.origin}"
            )
        elif isinstance(document, Endpoint):
            yield from _address_conflicts(item, document, owners)


def _address_conflicts(
    parsed: ParsedDocument, endpoint: Endpoint, owners: dict[AddressField, ParsedDocument]
) -> Iterator[DocumentError]:
    for number, address in enumerate(endpoint.spec.ips):
        if address in owners:
            owner = owners[address]
            message = f"{address} already belongs to {owner.document.title}, defined in {owner.document.origin}"
            yield parsed.error(("spec", "ips", number), message)
        owners.setdefault(address, parsed)
