"""Requirements on labels: the conditions of a selector, and the text form that kubectl and Hubble accept for them.

Text form: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors, with Cilium's
source prefix in the key. This module loads quickly: commands that only call an agent import it.
"""

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from nfq_enforcer.core.labels import ANY_SOURCE, Labels, check_value, split_key
from nfq_enforcer.text import shorten


class Operator(StrEnum):
    """Operator: the test of a key's value; In and Exists require the key, the others also match labels without it."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


_VALUED = (Operator.IN, Operator.NOT_IN)  # tuples, not sets: enumeration members are slow to hash
_NEGATIVE = (Operator.NOT_IN, Operator.DOES_NOT_EXIST)


class Requirement(NamedTuple):
    """Requirement: one condition on the labels of an endpoint."""

    source: str  # ``any``: the key of any source
    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    @property
    def negative(self) -> bool:
        """Return whether the operator is NotIn or DoesNotExist, the negation of In or Exists."""
        return self.operator in _NEGATIVE

    @property
    def valued(self) -> bool:
        """Return whether the operator compares values."""
        return self.operator in _VALUED

    def matches(self, labels: Labels) -> bool:
        """Return whether the labels meet the requirement."""
        found = labels.find(self.source, self.key)
        if self.operator in _VALUED:
            return any(label.value in self.values for label in found) is not self.negative
        return bool(found) is not self.negative


_SYNTAX = "allowed: KEY, !KEY, KEY=VALUE, KEY!=VALUE, KEY in (VALUE, …), KEY notin (VALUE, …), several joined by commas"
_SET = re.compile(r"\s*(\S+)\s+(in|notin)\s*\(([^()]*)\)\s*")
_EQUALITY = re.compile(r"\s*([^\s=!]+)\s*(==|=|!=)\s*([^\s=!]*)\s*")
_EXISTENCE = re.compile(r"\s*(!?)\s*([^\s=!]+)\s*")
_COMMA = re.compile(r",(?![^(]*\))")  # not between parentheses


def parse_requirements(text: str) -> tuple[Requirement, ...]:
    """Return the requirements of a selector in its text form, all of which labels must meet; raise ValueError.

    A key without a source has any source: ``role=frontend`` matches ``k8s:role=frontend``.
    """
    return tuple(_requirements(text))


def _requirements(text: str) -> Iterator[Requirement]:
    for part in _COMMA.split(text):
        if found := _SET.fullmatch(part):
            key, word, values = found.groups()
            operator = Operator.IN if word == "in" else Operator.NOT_IN
            yield _requirement(key, operator, *(value.strip() for value in values.split(",")))
        elif found := _EQUALITY.fullmatch(part):
            key, sign, value = found.groups()
            yield _requirement(key, Operator.NOT_IN if sign == "!=" else Operator.IN, value)
        elif found := _EXISTENCE.fullmatch(part):
            yield _requirement(found[2], Operator.DOES_NOT_EXIST if found[1] else Operator.EXISTS)
        else:
            raise ValueError(f"'{shorten(part)}' is no condition on a label; {_SYNTAX}")


def _requirement(key: str, operator: Operator, *values: str) -> Requirement:
    return Requirement(*split_key(key, ANY_SOURCE), operator, frozenset(map(check_value, values)))
