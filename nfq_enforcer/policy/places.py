"""Places of rules in the text of documents: the line on which a rule begins."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from nfq_enforcer.core.tables.policymap import WHOLE, RuleRef
from nfq_enforcer.policy import loader, yaml_source
from nfq_enforcer.policy.yaml_source import FieldPath

_NAMESPACE = "default"  # of a document that names none


class RulePlace(NamedTuple):
    """Rule place: the line of a rule, counted from 1, and the data of its document."""

    line: int
    data: Mapping[str, Any]


def find(text: str, file: str, ref: RuleRef) -> RulePlace | None:
    """Return the place of a rule in a text, None if the text has no such document; raise DocumentError for no YAML."""
    for source in yaml_source.documents(text, file):
        for _, base, data in loader.items(source):
            if isinstance(data, dict) and _is_document(data, ref):
                return RulePlace(source.place((*base, *_path(data, ref))).value.line, data)
    return None


def _is_document(data: Mapping[str, Any], ref: RuleRef) -> bool:
    metadata = data.get("metadata")
    if data.get("kind") != ref.kind or not isinstance(metadata, dict) or metadata.get("name") != ref.name:
        return False
    return not ref.namespace or metadata.get("namespace", _NAMESPACE) == ref.namespace


def _path(data: Mapping[str, Any], ref: RuleRef) -> FieldPath:
    section = f"{ref.direction}Deny" if ref.deny else str(ref.direction)
    place = (section,) if ref.number == WHOLE else (section, ref.number)
    if "specs" not in data or ("spec" in data and not ref.spec):
        return ("spec", *place)
    return ("specs", ref.spec - ("spec" in data), *place)
