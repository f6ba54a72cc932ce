"""Which documents an agent may take: not those that can be understood, but not yet be enforced."""

from collections.abc import Iterable, Iterator

from nfq_enforcer.errors import DocumentError, DocumentErrors
from nfq_enforcer.policy.cilium import CiliumPolicy
from nfq_enforcer.policy.documents import Document


def check(documents: Iterable[Document]) -> None:
    """Raise DocumentErrors for policies that this version cannot enforce all of: half of one is worse than none."""
    errors = [
        DocumentError(document.origin, f"{_called(document)}: {reason}")
        for document in documents
        for reason in _unenforceable(document)
    ]
    if errors:
        raise DocumentErrors(errors)


def _unenforceable(document: Document) -> Iterator[str]:
    rules = document.rules if isinstance(document, CiliumPolicy) else ()
    lacks = "are understood by validate, trace and matrix, but this version has no"
    if any(rule.has_http for rule in rules):
        yield f"http rules {lacks} proxy to enforce them"
    if any(rule.has_dns for rule in rules):
        yield f"dns rules {lacks} proxy to enforce them"
    if any(rule.node_selector is not None for rule in rules):
        yield f"rules with nodeSelector {lacks} way to judge the host's own packets"


def _called(document: Document) -> str:
    return f"{document.kind} {document.namespace}/{document.name}".replace(" /", " ")
