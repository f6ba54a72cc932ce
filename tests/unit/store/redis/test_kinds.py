"""Every kind of record has its place in all tables by kind: a new kind that lacks one fails here."""

import re
from importlib.resources import files

import pytest

from nfq_enforcer.cluster.records import Change, Kind
from nfq_enforcer.cluster.replica import NodeSettings, Replica
from nfq_enforcer.store.redis import schema
from nfq_enforcer.store.redis.history import sorted_for_store
from nfq_enforcer.store.redis.schema import SchemaError, StoreEntry


def test_every_kind_has_a_hash_under_the_same_name_in_the_scripts() -> None:
    script = (files("nfq_enforcer.store.redis") / "lua/common.lua").read_text()
    (table,) = re.findall(r"^local HASH = \{$(.*?)^\}$", script, re.MULTILINE | re.DOTALL)

    assert set(schema.HASHES) == set(Kind)
    assert dict(re.findall(r"(\w+) = PREFIX \.\. '(\w+)'", table)) == schema.HASHES


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_a_decoder(kind: Kind) -> None:
    with pytest.raises(SchemaError) as refused:
        schema.decode(kind, "256", b'{"v":1}')

    assert repr(kind) not in str(refused.value)  # the value lacks a field, not the table a kind


def test_every_kind_has_a_place_in_the_order_of_a_restoration() -> None:
    entries = [((kind, "256"), StoreEntry(1, b"")) for kind in Kind]

    assert sorted(sorted_for_store(entries)) == sorted(entries)


@pytest.mark.parametrize("kind", Kind)
def test_the_replica_applies_every_kind(kind: Kind) -> None:
    replica = Replica(NodeSettings("n1"))
    before = replica.view(1)

    replica.apply([Change(kind, "256", None)])

    assert replica.view(2).snapshot is before.snapshot
