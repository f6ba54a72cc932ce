"""Places of rules for people: the line of a file, or of the document as ``policy get`` prints it."""

from collections.abc import Iterable
from pathlib import Path

import yaml

from nfq_enforcer import input_file
from nfq_enforcer.core.tables.policymap import RuleRef
from nfq_enforcer.errors import NfqError
from nfq_enforcer.policy import places, yaml_source
from nfq_enforcer.policy.documents import PolicyDocument


class RulePlaces:
    """Rule places: where the rules of policies are written."""

    def __init__(self, policies: Iterable[PolicyDocument]) -> None:
        """Take the policies in force, with their origins."""
        self._policies = {policy.key: policy for policy in policies}
        self._texts: dict[str, str | None] = {}

    def of(self, ref: RuleRef) -> str:
        """Return ``file:line`` of a rule, or its line in the output of ``policy get``; empty for an unknown document.

        A file that has another version of the document by now does not count.
        """
        policy = self._policies.get((ref.kind, ref.namespace, ref.name))
        if policy is None:
            return ""
        file = policy.origin.rpartition(":")[0]
        text = self._text(file) if file else None
        place = self._find(text, file, ref) if text is not None else None
        if place is not None and place.data == policy.data:
            return f"{file}:{place.line}"
        printed = yaml.safe_dump(dict(policy.data), sort_keys=False, allow_unicode=True)
        place = self._find(printed, ref.name, ref)
        return f"line {place.line} of 'nfq-enforcer policy get {ref.document}'" if place is not None else policy.origin

    def _find(self, text: str, file: str, ref: RuleRef) -> places.RulePlace | None:
        try:
            return places.find(text, file, ref)
        except NfqError:
            return None

    def _text(self, file: str) -> str | None:
        if file not in self._texts:
            try:
                content = input_file.read(Path(file), input_file.DOCUMENTS_SIZE)
                self._texts[file] = yaml_source.decode(content, file)
            except NfqError:  # it is on another node, or has gone
                self._texts[file] = None
        return self._texts[file]
