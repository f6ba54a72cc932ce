"""References: the documents without rules that policies refer to, CIDR groups and services."""

from collections.abc import Iterable
from typing import NamedTuple

from nfq_enforcer.policy.cidr_groups import CidrGroups
from nfq_enforcer.policy.cilium import CiliumPolicy
from nfq_enforcer.policy.documents import Document
from nfq_enforcer.policy.services import Services


class References(NamedTuple):
    """References: the CIDR groups and services among some documents."""

    groups: CidrGroups
    services: Services

    @classmethod
    def among(cls, documents: Iterable[Document]) -> "References":
        """Return those among some documents."""
        documents = tuple(documents)
        return cls(CidrGroups(documents), Services(documents))

    def changed(self, others: "References", documents: Iterable[Document]) -> list[CiliumPolicy]:
        """Return the policies among documents that may have other rules with these than with others."""
        policies = [document for document in documents if isinstance(document, CiliumPolicy)]
        of_groups = [] if self.groups.same_as(others.groups) else [one for one in policies if any(one.group_references)]
        if self.services.same_as(others.services):
            return of_groups
        return [*of_groups, *(one for one in policies if any(one.service_references))]
