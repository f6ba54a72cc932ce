"""Check of enforceability: an agent refuses documents that this version can parse but not enforce."""

from collections.abc import Iterable, Iterator

from nfq_enforcer.errors import DocumentError, DocumentErrors
from nfq_enforcer.policy.cilium import CiliumPolicy
from nfq_enforcer.policy.documents import Document


def check(documents: Iterable[Document]) -> None:
    """Raise DocumentErrors for policies that this version cannot enforce fully: half a policy is worse than none."""
    errors = [error for document in documents for error in refusals(document)]
    if errors:
        raise DocumentErrors(errors)


def refusals(document: Document) -> list[DocumentError]:
    """Return the errors with which an agent refuses a valid document."""
    return [DocumentError(document.origin, f"{document.title}: {reason}") for reason in _unenforceable(document)]


def _unenforceable(document: Document) -> Iterator[str]:
    rules = document.rules if isinstance(document, CiliumPolicy) else ()
    if any(rule.node_selector is not None for rule in rules):
        yield (
            "rules with nodeSelector are understood by trace and matrix, but an agent of this version refuses them: "
            "it has no way to judge the host's own packets"
        )
