"""Identities: the reserved ones, which of them travel, and numbers that need no store."""

from nfq_enforcer.core.identity import CLUSTER_MAX, CLUSTER_MIN, HOST, RESERVED, WORLD, derive, travels
from nfq_enforcer.core.labels import Labels


def test_reserved_identities_have_upstreams_numbers_and_a_label_of_their_own() -> None:
    assert {number: str(labels) for number, labels in RESERVED.items()} == {
        1: "reserved:host",
        2: "reserved:world",
        3: "reserved:unmanaged",
        4: "reserved:health",
        5: "reserved:init",
        6: "reserved:remote-node",
        7: "reserved:kube-apiserver",
        8: "reserved:ingress",
    }


def test_only_identities_of_the_cluster_travel() -> None:
    assert [travels(number) for number in (CLUSTER_MIN, CLUSTER_MAX)] == [True, True]
    assert [travels(number) for number in (0, HOST, WORLD, 255, CLUSTER_MAX + 1, 1 << 24)] == [False] * 6


def test_the_same_labels_have_the_same_numbers_on_every_node() -> None:
    web, db = Labels.parse({"app": "web"}), Labels.parse({"app": "db"})

    assert derive([web, db]) == derive([db, web, web])
    assert derive([web]) == {web: derive([web, db])[web]}
    assert all(travels(number) for number in derive([web, db]).values())


def test_labels_whose_hashes_meet_have_numbers_of_their_own() -> None:
    many = [Labels.parse({"app": str(number)}) for number in range(20_000)]  # about a dozen of them meet

    numbers = derive(many)

    assert len(set(numbers.values())) == len(many)
    assert all(travels(number) for number in numbers.values())
    assert numbers == derive(reversed(many))
