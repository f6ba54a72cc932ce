"""The directory: names for identities and addresses."""

from nfq_enforcer.core.directory import Directory, EndpointName
from nfq_enforcer.core.identity import RESERVED, WORLD, Identity
from nfq_enforcer.core.labels import Labels
from tests.packets import packed

WEB, NAMELESS, UNKNOWN = Identity(300), Identity(301), Identity(302)
ALL, RELEVANT = Labels.parse({"app": "web", "version": "7"}), Labels.parse({"app": "web"})
FRONT = EndpointName("default", "front1", "n1", WEB, ALL, ("10.1.0.10",), None)
DIRECTORY = Directory({WEB: RELEVANT, NAMELESS: Labels()}, (FRONT,), {packed("10.1.0.10"): FRONT})


def test_an_identity_has_the_labels_that_make_it() -> None:
    assert DIRECTORY.labels(WEB) == RELEVANT


def test_a_reserved_identity_is_always_known() -> None:
    assert DIRECTORY.labels(WORLD) == RESERVED[WORLD]


def test_an_identity_without_labels_is_not_an_unknown_one() -> None:
    assert DIRECTORY.labels(NAMELESS) == Labels()
    assert DIRECTORY.labels(UNKNOWN) is None


def test_an_endpoint_is_found_by_its_address_and_identity_together() -> None:
    assert DIRECTORY.endpoint(packed("10.1.0.10"), WEB) is FRONT
    assert DIRECTORY.endpoint(packed("10.1.0.10"), WORLD) is None
    assert DIRECTORY.endpoint(packed("10.1.0.11"), WEB) is None
    assert DIRECTORY.endpoint(b"", WEB) is None
