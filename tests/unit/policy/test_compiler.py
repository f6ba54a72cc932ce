"""Compilation: the entries and the default deny of policy maps, in each enforcement mode, and after changes."""

import pytest
import yaml

from nfq_enforcer.core.identity import ANY, HOST, INIT, WORLD, Identity
from nfq_enforcer.core.labels import Labels
from nfq_enforcer.core.tables.policymap import PORT_BITS, PolicyEntry, PolicyKey, RuleRef
from nfq_enforcer.core.verdict import Direction
from nfq_enforcer.policy.cilium import CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy, CiliumPolicy
from nfq_enforcer.policy.compiler import EndpointMaps, Enforcement, Policy, compile_policy
from nfq_enforcer.policy.rules import NamedPort


def labels(app: str, namespace: str = "default") -> Labels:
    return Labels.parse({"app": app, "io.kubernetes.pod.namespace": namespace})


WEB, DB, FAR = labels("web"), labels("db"), labels("web", "far")
IDENTITIES = {WEB: Identity(300), DB: Identity(301), FAR: Identity(302)}
TCP, UDP, SCTP = 6, 17, 132


def policy(spec: str, name: str = "p", namespace: str = "default") -> CiliumPolicy:
    return CiliumNetworkPolicy.model_validate(
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": yaml.safe_load(spec),
        }
    )


def clusterwide(*specs: str) -> CiliumPolicy:
    return CiliumClusterwideNetworkPolicy.model_validate(
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumClusterwideNetworkPolicy",
            "metadata": {"name": "c"},
            "specs": [yaml.safe_load(spec) for spec in specs],
        }
    )


def maps(*policies: CiliumPolicy, mode: Enforcement = Enforcement.AUTO, of: Labels = DB) -> EndpointMaps:
    return compile_policy(policies, IDENTITIES, mode).maps_for(of)


def opened(entry: str) -> set[tuple[int, int, int]]:
    """Return the policy keys that one entry of ``ingress`` allows to the database."""
    spec = f"{{endpointSelector: {{matchLabels: {{app: db}}}}, ingress: [{entry}]}}"
    found = maps(policy(spec)).ingress
    assert found.enforced
    return {key[:3] for key in found.entries}


def ref(number: int = 0, direction: Direction = Direction.INGRESS, name: str = "p") -> RuleRef:
    return RuleRef("CiliumNetworkPolicy", "default", name, direction, number)


@pytest.mark.parametrize(
    "entry",
    [
        "{}",  # default deny: isolates and allows nothing
        "{toPorts: []}",
        "{fromEndpoints: []}",  # no peer, with ports or without
        "{fromEndpoints: [], toPorts: [{ports: [{port: '80'}]}]}",
        "{fromEndpoints: [{}], toPorts: [{}]}",  # an entry without ports allows none, as upstream
        "{fromEndpoints: [{}], toPorts: [{ports: []}]}",
        "{fromEndpoints: [{matchLabels: {app: nobody}}]}",
    ],
)
def test_an_entry_may_open_nothing(entry: str) -> None:
    assert opened(entry) == set()


@pytest.mark.parametrize("ports", ["", ", toPorts: []"])
def test_peers_without_ports_may_use_every_protocol_and_port(ports: str) -> None:
    assert opened(f"{{fromEndpoints: [{{matchLabels: {{app: web}}}}]{ports}}}") == {(300, 0, 0)}


def test_ports_without_peers_are_open_to_anyone() -> None:
    assert opened("{toPorts: [{ports: [{port: '80', protocol: TCP}]}]}") == {(ANY, TCP, 80)}


def test_peers_and_ports_open_these_ports_to_those_peers() -> None:
    peers = "{}, {matchLabels: {'reserved:world': ''}}"
    ports = "{port: '53', protocol: UDP}"

    found = opened(f"{{fromEndpoints: [{peers}], toPorts: [{{ports: [{ports}]}}]}}")

    assert found == {(300, UDP, 53), (301, UDP, 53), (WORLD, UDP, 53)}


def test_a_port_of_no_protocol_is_that_of_all_three_that_have_ports() -> None:
    assert opened("{toPorts: [{ports: [{port: '80'}]}]}") == {(ANY, TCP, 80), (ANY, UDP, 80), (ANY, SCTP, 80)}


def test_port_0_is_every_port_of_its_protocol() -> None:
    assert opened("{toPorts: [{ports: [{port: '0', protocol: TCP}]}]}") == {(ANY, TCP, 0)}


def test_a_negative_mention_of_the_namespace_opens_to_reserved_identities() -> None:
    peers = "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: DoesNotExist}]}"

    assert {(HOST, 0, 0), (WORLD, 0, 0), (INIT, 0, 0)} <= opened(f"{{fromEndpoints: [{peers}]}}")


def test_egress_is_opened_to_the_peers_it_names() -> None:
    found = maps(policy("{endpointSelector: {}, egress: [{toEndpoints: [{matchLabels: {app: web}}]}]}"))

    assert found.egress.entries == {PolicyKey(Identity(300), 0, 0, 0): PolicyEntry((ref(0, Direction.EGRESS),))}
    assert found.egress.enforced
    assert not found.ingress.enforced


def test_rules_add_up_and_each_entry_names_those_that_opened_it_in_order() -> None:
    entry = "{fromEndpoints: [{matchLabels: {app: web}}, {}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}"
    spec = f"{{endpointSelector: {{}}, ingress: [{{}}, {entry}, {entry}]}}"

    found = maps(policy(spec), policy(spec, "q")).ingress

    assert found.entries[PolicyKey(Identity(300), TCP, 80, PORT_BITS)].allowed_by == (
        *(ref(1), ref(2)),
        *(ref(1, name="q"), ref(2, name="q")),
    )
    assert found.enforced_by == tuple(ref(number, name=name) for name in "pq" for number in range(3))


def test_a_rule_of_specs_says_which_it_is() -> None:
    found = maps(clusterwide("{endpointSelector: {}, egress: [{}]}", "{endpointSelector: {}, ingress: [{}, {}]}"))

    assert [(one.spec, one.number, str(one)) for one in found.ingress.enforced_by] == [
        (1, 0, "c ingress[0]"),
        (1, 1, "c ingress[1]"),
    ]


INGRESS_FOR_DB = policy("{endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEndpoints: [{}]}]}")


def test_without_a_rule_auto_lets_everything_pass() -> None:
    assert [one.enforced for one in maps()] == [False, False]


def test_the_first_rule_closes_its_direction_for_everybody_in_auto() -> None:
    found = maps(INGRESS_FOR_DB, of=FAR)

    assert (found.ingress.enforced, found.ingress.enforced_by, found.ingress.entries) == (True, (ref(),), {})
    assert not found.egress.enforced


def test_per_endpoint_closes_whom_a_rule_selects() -> None:
    closed = maps(INGRESS_FOR_DB, mode=Enforcement.PER_ENDPOINT)
    free = maps(INGRESS_FOR_DB, mode=Enforcement.PER_ENDPOINT, of=WEB)

    assert (closed.ingress.enforced, closed.ingress.enforced_by) == (True, (ref(),))
    assert not closed.egress.enforced
    assert (free.ingress.enforced, free.ingress.enforced_by, free.ingress.entries) == (False, (), {})


def test_always_closes_both_directions_and_no_rule_is_to_blame() -> None:
    found = maps(INGRESS_FOR_DB, mode=Enforcement.ALWAYS)

    assert [(one.enforced, one.enforced_by) for one in found] == [(True, ()), (True, ())]
    assert set(found.ingress.entries) == {(300, 0, 0, 0), (301, 0, 0, 0)}


def test_never_closes_nothing() -> None:
    assert [(one.enforced, one.entries) for one in maps(INGRESS_FOR_DB, mode=Enforcement.NEVER)] == [(False, {})] * 2


def test_a_policy_is_for_its_own_namespace_and_a_clusterwide_one_for_all() -> None:
    spec = "{endpointSelector: {}, ingress: [{fromEndpoints: [{}]}]}"

    assert maps(policy(spec, namespace="far"), of=DB).ingress.entries == {}
    assert set(maps(policy(spec, namespace="far"), of=FAR).ingress.entries) == {(302, 0, 0, 0)}
    assert set(maps(clusterwide(spec), of=FAR).ingress.entries) == {(300, 0, 0, 0), (301, 0, 0, 0), (302, 0, 0, 0)}


def test_endpoints_with_equal_labels_share_their_maps() -> None:
    compiled = compile_policy([INGRESS_FOR_DB], IDENTITIES, Enforcement.AUTO)

    one, other = compiled.maps_for(labels("db")), compiled.maps_for(labels("db"))
    assert one.ingress is other.ingress
    assert one.egress is other.egress


def test_endpoints_under_one_rule_share_its_entries() -> None:
    rule = policy("{endpointSelector: {}, ingress: [{fromEndpoints: [{}]}]}")
    compiled = compile_policy([rule], IDENTITIES, Enforcement.AUTO)
    (web, *_), (db, *_) = compiled.maps_for(WEB).ingress.entries, compiled.maps_for(DB).ingress.entries

    assert web is db


def test_maps_that_somebody_asks_for_once_are_the_same_and_are_not_kept() -> None:
    asked = compile_policy([INGRESS_FOR_DB], IDENTITIES, Enforcement.AUTO)
    once = asked.maps_once(labels("db"))

    kept = asked.maps_for(labels("db"))
    assert once.ingress is not kept.ingress
    assert (once.ingress.entries, once.ingress.enforced_by) == (kept.ingress.entries, kept.ingress.enforced_by)
    assert asked.maps_once(labels("db")).ingress is kept.ingress  # of an endpoint, which has them anyhow


# --- changes ---

FOR_WEB = policy("{endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEndpoints: [{}]}]}", "w")
KINDS = (WEB, DB, FAR)
HTTP, HTTP_TOO = (frozenset((NamedPort("http", TCP, number),)) for number in (80, 8080))


def compiled(*policies: CiliumPolicy, mode: Enforcement = Enforcement.PER_ENDPOINT) -> Policy:
    """Return a policy with its maps compiled, so that the next policy can reuse them."""
    made = compile_policy(policies, IDENTITIES, mode)
    assert all(made.maps_for(kind) for kind in KINDS)
    return made


def same(before: Policy, after: Policy) -> set[tuple[Labels, Direction]]:
    """Return the sides with the same policy map object as before."""
    return {
        (kind, direction)
        for kind in KINDS
        for direction, one, other in zip(Direction, before.maps_for(kind), after.maps_for(kind), strict=True)
        if one is other
    }


EVERY = {(kind, direction) for kind in KINDS for direction in Direction}


def test_a_new_identity_touches_only_the_maps_of_those_who_admit_it() -> None:
    before = compiled(INGRESS_FOR_DB, policy("{endpointSelector: {}, ingress: [{fromEndpoints: []}]}", "n", "far"))
    entries = dict(before.maps_for(DB).ingress.entries)

    after = before.with_identity(labels("new"), Identity(400))

    assert same(before, after) == EVERY - {(DB, Direction.INGRESS)}
    assert after.maps_for(DB).ingress.entries == {**entries, PolicyKey(Identity(400), 0, 0, 0): PolicyEntry((ref(),))}
    assert before.maps_for(DB).ingress.entries == entries


def test_an_identity_that_goes_takes_its_entries_and_its_maps_along() -> None:
    before = compiled(INGRESS_FOR_DB, FOR_WEB)

    after = before.without_identity(WEB)

    assert set(after.maps_for(DB).ingress.entries) == {(301, 0, 0, 0)}
    assert after.maps_for(WEB).egress is not before.maps_for(WEB).egress
    with pytest.raises(KeyError):
        after.without_identity(WEB)


def test_an_identity_may_get_another_number() -> None:
    after = compiled(INGRESS_FOR_DB).with_identity(WEB, Identity(500))

    assert set(after.maps_for(DB).ingress.entries) == {(500, 0, 0, 0), (301, 0, 0, 0)}


def test_endpoints_of_one_identity_that_name_other_ports_are_told_apart_when_they_come() -> None:
    rule = policy("{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: http, protocol: TCP}]}]}]}")
    one = compiled(rule).with_identity(WEB, Identity(300), [HTTP])
    both = one.with_identity(WEB, Identity(300), [HTTP, HTTP_TOO])
    sites = both.local_identities.by_port_set

    assert set(one.maps_for(DB).egress.entries) == {(300, TCP, 80, PORT_BITS)}
    assert set(both.maps_for(DB).egress.entries) == {
        (sites[Identity(300), HTTP], TCP, 80, PORT_BITS),
        (sites[Identity(300), HTTP_TOO], TCP, 8080, PORT_BITS),
    }
    assert both.with_identity(WEB, Identity(300)).maps_for(DB).egress.entries == {}


def test_a_changed_policy_touches_only_the_maps_of_those_it_selects() -> None:
    before = compiled(INGRESS_FOR_DB, FOR_WEB)
    other = policy("{endpointSelector: {matchLabels: {app: db}}, ingress: [{}, {fromEntities: [world]}]}")

    after = before.with_documents([other, FOR_WEB])

    assert same(before, after) == EVERY - {(DB, Direction.INGRESS)}
    assert after.maps_for(DB).ingress.entries == {PolicyKey(WORLD, 0, 0, 0): PolicyEntry((ref(1),))}
    assert after.maps_for(DB).ingress.enforced_by == (ref(0), ref(1))
    assert len(before.maps_for(DB).ingress.entries) == 2


def test_in_auto_the_first_and_the_last_rule_touch_everybody_but_share_entries() -> None:
    none = compiled(mode=Enforcement.AUTO)
    one = none.with_documents([INGRESS_FOR_DB])
    two = one.with_documents([INGRESS_FOR_DB, FOR_WEB])
    again = two.with_documents([])

    assert same(none, one) == {(kind, Direction.EGRESS) for kind in KINDS}
    assert [kept.maps_for(FAR).ingress.enforced_by for kept in (none, one, two, again)] == [
        *((), (ref(),), (ref(), ref(name="w")), ()),
    ]
    assert two.maps_for(DB).ingress.entries is one.maps_for(DB).ingress.entries
    assert not again.maps_for(DB).ingress.enforced


def test_in_never_nothing_is_touched() -> None:
    before = compiled(mode=Enforcement.NEVER)

    assert same(before, before.with_documents([INGRESS_FOR_DB]).with_identity(labels("new"), Identity(400))) == EVERY


def test_a_change_that_says_nothing_new_touches_nothing() -> None:
    before = compiled(INGRESS_FOR_DB, FOR_WEB)

    assert same(before, before.with_documents([INGRESS_FOR_DB, FOR_WEB]).with_identity(WEB, Identity(300))) == EVERY


def test_rules_are_named_in_the_order_of_documents_however_they_came() -> None:
    spec = "{endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {app: web}}]}]}"
    first, second, third = (policy(spec, name) for name in "abc")
    before = compiled(first, third)

    for documents in (
        [first, second, third],
        [third, first, second],
    ):  # a document added in the middle, then another order
        found = before.with_documents(documents).maps_for(DB).ingress
        refs = tuple(ref(name=one.name) for one in documents)
        assert found.entries == {PolicyKey(Identity(300), 0, 0, 0): PolicyEntry(refs)}
        assert found.enforced_by == refs


def test_a_prefix_that_comes_is_cut_out_of_those_that_contain_it() -> None:
    wide = policy("{endpointSelector: {}, egress: [{toCIDR: [10.0.0.0/8]}, {toEntities: [world]}]}")
    narrow = policy("{endpointSelector: {}, egress: [{toCIDR: [10.1.0.0/16]}]}", "n", "far")
    before = compiled(wide)

    after = before.with_documents([wide, narrow])

    cut, whole = sorted(after.local_identities.by_cidr.items(), key=lambda one: -one[0].prefixlen)
    assert set(after.maps_for(DB).egress.entries) - set(before.maps_for(DB).egress.entries) == {(cut[1], 0, 0, 0)}
    assert after.maps_for(DB).egress.entries[PolicyKey(cut[1], 0, 0, 0)].allowed_by == tuple(
        ref(number, Direction.EGRESS) for number in range(2)
    )
    assert after.with_documents([wide]).maps_for(DB).egress.entries == before.maps_for(DB).egress.entries
    assert whole[1] == before.local_identities.by_cidr[whole[0]]


def test_prefixes_whose_numbers_meet_are_told_apart_when_the_second_comes() -> None:
    one, other = (
        policy(f"{{endpointSelector: {{}}, egress: [{{toCIDR: [10.20.{third}.0/24]}}]}}", f"p{third}")
        for third in (20, 147)
    )
    before = compiled(one)

    after = before.with_documents([one, other])

    fresh = compiled(one, other)
    assert set(before.local_identities.by_cidr.values()) < set(after.local_identities.by_cidr.values())
    assert after.maps_for(DB).egress.entries == fresh.maps_for(DB).egress.entries
    assert after.maps_for(DB).egress.entries != before.maps_for(DB).egress.entries


def test_many_identities_that_come_one_by_one_are_as_if_they_had_been_there() -> None:
    many = {labels(f"n{number}"): Identity(400 + number) for number in range(150)}
    after = compiled(INGRESS_FOR_DB)
    for of, identity in many.items():
        after = after.with_identity(of, identity)

    fresh = compile_policy([INGRESS_FOR_DB], IDENTITIES | many, Enforcement.PER_ENDPOINT)
    assert after.maps_for(DB).ingress.entries == fresh.maps_for(DB).ingress.entries

    fewer = after.without_identity(labels("n0")).with_documents([FOR_WEB, INGRESS_FOR_DB]).without_identity(WEB)
    assert set(fewer.maps_for(DB).ingress.entries) == {(n, 0, 0, 0) for n in (301, *range(401, 550))}
