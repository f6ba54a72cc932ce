"""Loader of documents from files and folders, all or nothing.

The loader returns the documents of every file, or raises DocumentErrors with all errors of all documents if any is
invalid. ``-`` is the standard input.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from nfq_enforcer import input_file
from nfq_enforcer.core.labels import DEFAULT_SOURCE, Label, Labels
from nfq_enforcer.errors import BadInput, DocumentError, DocumentErrors
from nfq_enforcer.input_file import DOCUMENTS_SIZE, STANDARD_INPUT
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
from nfq_enforcer.policy.file_cache import FileCache, FileMark
from nfq_enforcer.policy.inspection import Inspection, ParsedDocument
from nfq_enforcer.policy.progress import Progress
from nfq_enforcer.policy.registry import (
    KINDS,
    LISTS,
    is_other_kind,
    is_unsupported,
    replacement,
    similar_kinds,
    versions,
    wrong_version,
)
from nfq_enforcer.policy.validation import Items, Part, validate
from nfq_enforcer.policy.yaml_source import YamlDocument

SUFFIXES = frozenset((".yaml", ".yml", ".json"))
PROBES = ".probes.json"  # suffix of probe files, which stand beside documents and are not loaded


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


def load(
    paths: Iterable[Path],
    applied: Iterable[ParsedDocument] = (),
    *,
    ignore_other_kinds: bool = False,
    cache: FileCache | None = None,
    progress: Progress | None = None,
) -> Documents:
    """Return the documents of files and folders, together with the ``applied`` ones.

    Raise DocumentErrors with all errors of all documents. ``ignore_other_kinds``: leave out documents of kinds that
    have nothing to do with policy. ``cache`` has the files of an earlier load with the same options.
    """
    inspection = inspect(paths, applied, ignore_other_kinds=ignore_other_kinds, cache=cache, progress=progress)
    _raise_any(inspection.errors)
    return group_documents(item.document for item in inspection.parsed)


def inspect(
    paths: Iterable[Path],
    applied: Iterable[ParsedDocument] = (),
    *,
    ignore_other_kinds: bool = False,
    cache: FileCache | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Return the documents of files and folders with every error in them; of ``applied``, only conflicts are errors."""
    file_paths, errors = _files(paths)
    inspection = Inspection([], errors, len(errors), len(errors))
    for path in file_paths:
        try:
            inspection.add(_inspect_path(path, ignore_other_kinds, cache, progress or Progress()))
        except DocumentError as error:
            inspection.add(Inspection([], [error], 1, 1))
    if cache is not None:
        cache.retain(set(map(str, file_paths)))
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


def parse_all(
    files: Iterable[File], *, ignore_other_kinds: bool = False, progress: Progress | None = None
) -> list[ParsedDocument]:
    """Return the documents of one set of files; raise DocumentErrors with all errors, conflicts included."""
    inspection = Inspection()
    for file in files:
        inspection.add(_inspect_file(file, ignore_other_kinds, progress))
    _raise_any([*inspection.errors, *_conflicts(inspection.parsed)])
    return inspection.parsed


def from_data(documents: Iterable[Mapping[str, Any]]) -> Documents:
    """Return documents of their data, which an agent has validated before; raise BadInput for an unknown kind."""
    return group_documents(map(_from_data, documents))


def _from_data(data: Mapping[str, Any]) -> Document:
    if data.get("kind") not in KINDS:
        raise BadInput(f"a document has the kind {data.get('kind')!r}, which this version does not have")
    document = KINDS[data["kind"]][1].model_validate(data)
    document.set_origin("", data)
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


def _inspect_path(path: Path, ignore_other_kinds: bool, cache: FileCache | None, progress: Progress) -> Inspection:
    mark = mark_of(path) if cache is not None else None
    if cache is None or mark is None:
        return _inspect_file(_read_file(path), ignore_other_kinds, progress)
    inspection = cache.get(str(path), mark)
    if inspection is None:
        inspection = cache.put(str(path), mark, _inspect_file(_read_file(path), ignore_other_kinds, progress))
    return inspection


def mark_of(path: Path) -> FileMark | None:
    """Return the mark of a file, None for one that cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return FileMark(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _inspect_file(file: File, ignore_other_kinds: bool, progress: Progress | None = None) -> Inspection:
    """Return the documents of a file with every error in them; a file that is no YAML has one error.

    Each document is checked before the next is parsed, so that the places of one document only are in memory.
    """
    progress = progress or Progress()
    progress.stage(f"reading {file.name}, characters", len(file.text))
    inspection = Inspection()
    try:
        for source in yaml_source.documents(file.text, file.name, progress.advance):
            inspection.add(_inspect_document(source, ignore_other_kinds))
    except DocumentError as error:
        return Inspection([], [templates.explain_syntax_error(error, file.text)], 1, 1)
    return inspection


def _inspect_document(source: YamlDocument, ignore_other_kinds: bool) -> Inspection:
    try:
        found = items(source)
    except (DocumentError, DocumentErrors) as error:
        return Inspection([], list(error.errors), 1, 1)
    inspection = Inspection(total=len(found))
    for item in found:
        if ignore_other_kinds and is_other_kind(item[2]):
            inspection.ignored += 1
            continue
        try:
            inspection.parsed.append(_parse_item(item).compact())
        except (DocumentError, DocumentErrors) as error:
            inspection.errors += error.errors
            inspection.refused += 1
    return inspection


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


def _files(paths: Iterable[Path]) -> tuple[Collection[Path], list[DocumentError]]:
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
    _raise_any([DocumentError(error.filename, f"cannot be read: {error.strerror}") for error in failed])
    return sorted(files)


def _is_document(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(PROBES) and Path(name).suffix in SUFFIXES


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # reading the path raises the error with its reason
        return False


def _read_file(path: Path) -> File:
    content = input_file.read(path, DOCUMENTS_SIZE, standard_input=True)
    name = input_file.name_of(path)
    return File(name, yaml_source.decode(content, name))


class _List(Part):
    """List: several documents in one, as ``kubectl get -o yaml`` and the API print them."""

    api_version: str
    kind: str
    metadata: object = None
    items: Items[object] = ()


def items(source: YamlDocument) -> list[_Item]:
    """Return the items of a list, each with the list's kind and version if it names none, or the document itself."""
    kind = source.data.get("kind") if isinstance(source.data, dict) else None
    if not isinstance(kind, str) or kind not in LISTS:
        return [(source, (), source.data)]
    found = validate(_List, source.data, source, explain=True)
    item_kind = LISTS[kind][1]
    _check_version(kind, found.api_version, source, ())
    made = {"apiVersion": found.api_version, "kind": item_kind} if item_kind else {}
    return [
        (source, ("items", number), {**made, **item} if isinstance(item, dict) and "kind" not in item else item)
        for number, item in enumerate(found.items)
    ]


def _parse_item(item: _Item) -> ParsedDocument:
    source, base, data = item
    if not isinstance(data, dict):
        raise source.error(base, f"a document must be a mapping with apiVersion and kind; allowed: {_ALLOWED}")
    model = _model(source, base, data)
    _check_version(data["kind"], data.get("apiVersion"), source, base)
    document = validate(model, data, source, base, explain=True)
    document.set_origin(f"{source.file}:{source.place(base).value.line}", data)
    return ParsedDocument(document, source, base)


def _check_version(kind: str, version: object, source: YamlDocument, base: yaml_source.FieldPath) -> None:
    if version not in versions(kind):
        raise source.error((*base, "apiVersion"), templates.sentence(str(version)) or wrong_version(kind, version))


def _model(source: YamlDocument, base: yaml_source.FieldPath, data: dict[str, object]) -> type[Document]:
    kind = data.get("kind")
    if kind is None:
        raise source.error((*base, "kind"), f"required field is missing; allowed: {_ALLOWED}")
    if not isinstance(kind, str):
        raise source.error((*base, "kind"), f"must be a string; allowed: {_ALLOWED}")
    if kind in KINDS:
        return KINDS[kind][1]
    if is_unsupported(kind):
        raise source.error(
            (*base, "kind"), f"{kind} is not supported by this version; {replacement(kind)}allowed: {_ALLOWED}"
        )
    if kind in LISTS:
        raise source.error((*base, "kind"), f"a {kind} in a list is not read; write its items into the outer list")
    close = similar_kinds(kind, data.get("apiVersion"))
    hint = f"did you mean '{close[0]}'? " if close else ""
    message = templates.sentence(kind) or f"unknown kind '{kind}'; {hint}allowed: {_ALLOWED}"
    raise source.error((*base, "kind"), message)


_ALLOWED = ", ".join(f"{kind} ({version})" for kind, (version, _) in KINDS.items())


def _conflicts(parsed: Iterable[ParsedDocument]) -> Iterator[DocumentError]:
    by_key: dict[DocumentKey, ParsedDocument] = {}
    owners: dict[AddressField | tuple[str | None, str], ParsedDocument] = {}
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
    parsed: ParsedDocument, endpoint: Endpoint, owners: dict[AddressField | tuple[str | None, str], ParsedDocument]
) -> Iterator[DocumentError]:
    for number, address in enumerate(endpoint.spec.ips):
        if address in owners:
            owner = owners[address]
            message = f"{address} already belongs to {owner.document.title}, defined in {owner.document.origin}"
            yield parsed.error(("spec", "ips", number), message)
        owners.setdefault(address, parsed)
    if endpoint.spec.cgroup is not None:
        cgroup = endpoint.spec.node, endpoint.spec.cgroup
        if owners.setdefault(cgroup, parsed) is not parsed:
            other = owners[cgroup].document
            message = f"{cgroup[1]} already belongs to {other.title}, defined in {other.origin}"
            yield parsed.error(("spec", "cgroup"), message)
