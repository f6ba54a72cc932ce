"""CIDR groups: the prefixes that rules name by ``cidrGroupRef`` and ``cidrGroupSelector`` (CiliumCIDRGroup).

A rule with a reference means the prefixes that its groups have, as if it listed them itself. A prefix of ``except``
takes its addresses out of each. Without such a group a rule has no address: an allow rule opens nothing, a deny rule
denies nothing.
"""

from collections.abc import Iterable, Iterator

from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.prefixes import Network
from nfq_enforcer.policy.cilium import CidrRule, CiliumCIDRGroup
from nfq_enforcer.policy.documents import Document
from nfq_enforcer.policy.selectors import label_selector


class CidrGroups:
    """CidrGroups: all CIDR groups among some documents, in their order."""

    def __init__(self, documents: Iterable[Document] = ()) -> None:
        """Take the groups; documents of other kinds do not count."""
        self._groups = tuple(
            (document, Labels.parse(document.metadata.labels))
            for document in documents
            if isinstance(document, CiliumCIDRGroup)
        )

    def same_as(self, others: "CidrGroups") -> bool:
        """Tell whether both have the same document objects, in the same order."""
        return [id(group) for group, _ in self._groups] == [id(group) for group, _ in others._groups]

    def of(self, rule: CidrRule) -> list[CiliumCIDRGroup]:
        """Return the groups that an entry refers to, by name or by labels."""
        if rule.cidr_group_selector is None:
            return [group for group, _ in self._groups if group.name == rule.cidr_group_ref]
        selector = label_selector(rule.cidr_group_selector)
        return [group for group, labels in self._groups if selector.matches(labels)]

    def blocks(self, rule: CidrRule) -> Iterator[tuple[Network, list[Network]]]:
        """Yield each prefix of the groups that an entry refers to, with the prefixes of ``except`` within it."""
        for prefix in dict.fromkeys(prefix for group in self.of(rule) for prefix in group.prefixes):
            around = [each for each in rule.except_ if each.version == prefix.version]
            if not any(prefix.subnet_of(each) for each in around):  # type: ignore[arg-type]
                yield prefix, [each for each in around if each.subnet_of(prefix)]  # type: ignore[arg-type]
