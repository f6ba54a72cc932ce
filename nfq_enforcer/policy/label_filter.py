"""Label filter: the labels that determine an identity, by Cilium's option ``labels`` (here ``identity_labels``)."""

from collections.abc import Iterable

from nfq_enforcer.core.labels import SOURCE, Labels
from nfq_enforcer.policy import regex

_MAX_KNOWN = 1 << 14  # label names with a kept result

_EXCLUDED_BY_DEFAULT = (
    # Cilium's documented default filter: labels that change with every roll-out, or that describe the machine.
    r"!io\.kubernetes",
    r"!kubernetes\.io",
    r"!.*beta\.kubernetes\.io",
    r"!k8s\.io",
    r"!pod-template-generation",
    r"!pod-template-hash",
    r"!controller-revision-hash",
    r"!statefulset\.kubernetes\.io/pod-name",
    r"!apps\.kubernetes\.io/pod-index",
    r"!batch\.kubernetes\.io/job-completion-index",
    r"!batch\.kubernetes\.io/controller-uid",
    r"!controller-uid",
    r"!etcd_node",
    r"!annotation.*",
)
_INCLUDED_BY_DEFAULT = (
    r"reserved:.*",
    r"k8s:io\.kubernetes\.pod\.namespace",
    r"k8s:io\.cilium\.k8s\.namespace\.labels",
    r"k8s:io\.cilium\.k8s\.policy",
    r"k8s:app\.kubernetes\.io",
)


class LabelFilter:
    """Label filter: selects the identity-relevant labels, by Cilium's ``labels`` option.

    A pattern is an RE2 expression, matched from the start of ``source:key`` if it names a source, else of the key;
    ``!`` excludes. The longest match decides. If any given pattern includes, labels that no pattern matches are
    excluded. (https://docs.cilium.io/en/stable/operations/performance/scalability/identity-relevant-labels/)
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        """Take patterns in addition to the default ones; raise ValueError for an invalid regular expression."""
        given = tuple(patterns)
        self._include_rest = all(pattern.startswith("!") for pattern in given)
        self._known: dict[str, bool] = {}
        self._patterns = [self._compile(p) for p in (*_EXCLUDED_BY_DEFAULT, *_INCLUDED_BY_DEFAULT, *given)]

    @staticmethod
    def _compile(pattern: str) -> tuple[bool, str]:
        text = regex.check(pattern.removeprefix("!"))
        source, colon, _ = text.partition(":")
        named = colon and SOURCE.fullmatch(source)
        return not pattern.startswith("!"), text if named else f"[^:]*:(?:{text})"

    def apply(self, labels: Labels) -> Labels:
        """Return the identity-relevant labels."""
        return Labels(label for label in labels if self._relevant(f"{label.source}:{label.key}"))

    def includes(self, source: str, key: str) -> bool:
        """Return whether a label with this source and key is identity-relevant."""
        return self._relevant(f"{source}:{key}")

    def _relevant(self, name: str) -> bool:
        """Return whether a label name decides an identity; endpoints have few different names, so results are kept."""
        relevant = self._known.get(name)
        if relevant is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            relevant = self._known[name] = self._evaluate(name)
        return relevant

    def _evaluate(self, name: str) -> bool:
        longest, relevant = 0, self._include_rest
        for include, pattern in self._patterns:
            end = regex.match_end(pattern, name)
            if end >= longest:
                longest, relevant = end, include
        return relevant
