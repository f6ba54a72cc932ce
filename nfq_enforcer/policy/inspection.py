"""Inspection of files: their documents with the places of fields, and the errors in them."""

from dataclasses import dataclass, field

from nfq_enforcer.errors import DocumentError
from nfq_enforcer.policy.documents import Document, Endpoint
from nfq_enforcer.policy.yaml_source import FieldPath, YamlDocument


@dataclass(frozen=True)
class ParsedDocument:
    """ParsedDocument: a document, with the places of its fields for error messages."""

    document: Document
    source: YamlDocument
    base: FieldPath  # path of the document in its source: not the root if it is an item of a List

    def error(self, path: FieldPath, message: str) -> DocumentError:
        """Return an error with this message about a field of the document."""
        return self.source.error(self.base + path, message)

    def compact(self) -> "ParsedDocument":
        """Return the document with the places of its kind, name and ends only, those that later errors refer to.

        All places take several times the memory of the document.
        """
        addresses = len(self.document.spec.ips) if isinstance(self.document, Endpoint) else 0
        paths = [(), ("kind",), ("metadata", "name"), *(("spec", "ips", number) for number in range(addresses))]
        if isinstance(self.document, Endpoint) and self.document.spec.cgroup is not None:
            paths.append(("spec", "cgroup"))
        places = {self.base + path: self.source.place(self.base + path) for path in paths}
        return ParsedDocument(self.document, YamlDocument(self.source.file, None, places), self.base)


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
