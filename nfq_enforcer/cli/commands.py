"""Tree of the commands: the one place where a command has its name, its function and its examples.

A command is a function of a module in this package; its parameters are the options (Typer), its docstring is the help.
``tree`` imports the module of a command when the command is needed, so that ``nfq-enforcer status`` waits for no other;
the help of a group and the completion of a shell import those of the group. So these modules import at their top only
modules that are imported quickly, and the others (pydantic, redis, the agent) inside of the functions that need them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

_NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})
_OPTIONS_OF_OTHERS: Mapping[str, Any] = {"context_settings": {"ignore_unknown_options": True}}


class Entry(NamedTuple):
    """Entry: one command."""

    place: str  # MODULE:FUNCTION, of a module in this package
    examples: tuple[str, ...]  # command lines for its help; the unit tests parse each
    settings: Mapping[str, Any] = _NO_SETTINGS  # further arguments of Typer's ``command``


class GroupEntry(NamedTuple):
    """Entry of a group of commands."""

    help: str
    examples: tuple[str, ...]


EXAMPLES = ("nfq-enforcer status", "nfq-enforcer observe --follow --verdict DROPPED", "nfq-enforcer policy list")
"""Of the program without a command."""

GROUPS: Mapping[str, GroupEntry] = {
    "policy": GroupEntry(
        "Policy documents.",
        ("nfq-enforcer policy load --wait policies/frontend-to-backend.yaml", "nfq-enforcer policy list"),
    ),
    "endpoint": GroupEntry("Endpoints.", ("nfq-enforcer endpoint list", "nfq-enforcer endpoint get web-1")),
    "identity": GroupEntry("Identities.", ("nfq-enforcer identity list",)),
    "node": GroupEntry("The nodes of the cluster.", ("nfq-enforcer node list",)),
    "ipcache": GroupEntry("The ipcache: addresses and their identities.", ("nfq-enforcer ipcache list",)),
    "conntrack": GroupEntry("Flows of this node.", ("nfq-enforcer conntrack list",)),
    "fqdn": GroupEntry("Names with the addresses learned from DNS answers.", ("nfq-enforcer fqdn list",)),
    "store": GroupEntry("The store that the nodes of a cluster share.", ("nfq-enforcer store status",)),
    "lab": GroupEntry(
        "A lab of three nodes on this host, in network namespaces (root).",
        ("nfq-enforcer lab up --run-id mine", "nfq-enforcer lab down --run-id mine"),
    ),
}

COMMANDS: Mapping[str, Entry] = {
    "agent": Entry("agent:agent", ("nfq-enforcer agent --config /etc/nfq-enforcer/agent.yaml",)),
    "status": Entry(
        "status:status",
        ("nfq-enforcer status", "nfq-enforcer status --wait --timeout 60", "nfq-enforcer status -o json | jq .health"),
    ),
    "observe": Entry(
        "observe:observe",
        (
            "nfq-enforcer observe --follow --verdict DROPPED",
            "nfq-enforcer observe --from-label role=frontend --not --to-port 53 --since 5m",
            "nfq-enforcer observe --all-nodes --follow --verdict DROPPED",
            "nfq-enforcer observe --all -o jsonpb > flows.json",
            "nfq-enforcer observe --input-file flows.json --http-path '^/users/' -o dict",
        ),
    ),
    "why": Entry(
        "why:why",
        (
            "nfq-enforcer why",
            "nfq-enforcer why --to-label role=db --drop-reason POLICY_DENIED",
            "nfq-enforcer why --from default/web-1 --to default/db-1 --port 5432",
            "nfq-enforcer why --input-file flows.json -f policies/",
        ),
    ),
    "capture": Entry(
        "capture:capture",
        ("nfq-enforcer capture --write drops.pcapng --duration 60", "nfq-enforcer capture | wireshark -k -i -"),
    ),
    "ui": Entry(
        "ui:ui",
        ("nfq-enforcer ui", "nfq-enforcer ui --listen 10.0.0.1:9963 --token-file /etc/nfq-enforcer/ui-token"),
    ),
    "policy validate": Entry(
        "policy_files:validate",
        (
            "nfq-enforcer policy validate policies/",
            "kubectl get netpol -A -o yaml | nfq-enforcer policy validate --ignore-other-kinds -",
        ),
    ),
    "policy load": Entry(
        "policy:load",
        (
            "nfq-enforcer policy load --wait policies/frontend-to-backend.yaml",
            "nfq-enforcer policy load --ignore-other-kinds manifests/",
        ),
    ),
    "policy list": Entry("policy:list_policies", ("nfq-enforcer policy list -o table",)),
    "policy get": Entry("policy:get", ("nfq-enforcer policy get default/frontend-to-backend",)),
    "policy delete": Entry("policy:delete", ("nfq-enforcer policy delete --wait default/frontend-to-backend",)),
    "policy trace": Entry(
        "policy_files:trace",
        (
            "nfq-enforcer policy trace --from default/front1 --to default/back1 --port 80/TCP",
            "nfq-enforcer policy trace --from default/front1 --to default/back1 --http 'GET /' -f policies/",
        ),
    ),
    "policy matrix": Entry(
        "policy_files:matrix",
        (
            "nfq-enforcer policy matrix --endpoints policies/endpoints.yaml --policies policies/backend-web-ports.yaml",
            "nfq-enforcer policy matrix --endpoints endpoints/ --policies policies/ --probes probes.json",
        ),
    ),
    "policy diff": Entry(
        "policy_files:diff", ("nfq-enforcer policy diff now/ new/ --endpoints policies/endpoints.yaml -o table",)
    ),
    "policy suggest": Entry(
        "suggest:suggest",
        (
            "nfq-enforcer policy suggest --since 1h > suggested.yaml",
            "nfq-enforcer policy suggest --for 10m --namespace shop --http",
            "nfq-enforcer policy suggest --input-file n1.json --input-file n2.json --not --to-port 22",
        ),
    ),
    "policy impact": Entry(
        "impact:impact",
        (
            "nfq-enforcer policy impact suggested.yaml",
            "nfq-enforcer policy impact new/ --only --since 1h --from-label role=frontend",
            "nfq-enforcer policy impact new.yaml --input-file flows.json -f policies/",
        ),
    ),
    "endpoint add": Entry(
        "endpoint:add",
        (
            "nfq-enforcer endpoint add web-1 --ip 10.0.7.11 --label role=frontend --interface veth-web1",
            "nfq-enforcer endpoint add -f my-endpoints.yaml",
        ),
    ),
    "endpoint list": Entry(
        "endpoint:list_endpoints", ("nfq-enforcer endpoint list", "nfq-enforcer endpoint list -o wide --no-headers")
    ),
    "endpoint get": Entry("endpoint:get", ("nfq-enforcer endpoint get default/web-1 -o json",)),
    "endpoint policy": Entry("endpoint:policy", ("nfq-enforcer endpoint policy default/web-1",)),
    "endpoint delete": Entry("endpoint:delete", ("nfq-enforcer endpoint delete web-1 web-2",)),
    "identity list": Entry("identity:list_identities", ("nfq-enforcer identity list -o wide",)),
    "identity get": Entry("identity:get", ("nfq-enforcer identity get 12339331",)),
    "node list": Entry("node:list_nodes", ("nfq-enforcer node list", "nfq-enforcer node list -o json")),
    "ipcache list": Entry("ipcache:list_addresses", ("nfq-enforcer ipcache list --no-headers",)),
    "conntrack list": Entry("conntrack:list_flows", ("nfq-enforcer conntrack list --from default/web-1",)),
    "conntrack flush": Entry("conntrack:flush", ("nfq-enforcer conntrack flush",)),
    "fqdn list": Entry("fqdn:list_names", ("nfq-enforcer fqdn list", "nfq-enforcer fqdn list -o json")),
    "store status": Entry("store:status", ("nfq-enforcer store status",)),
    "store export": Entry("store:export", ("nfq-enforcer store export backup.jsonl",)),
    "store import": Entry("store:import_", ("nfq-enforcer store import backup.jsonl",)),
    "store gc": Entry("store:gc", ("nfq-enforcer store gc --grace 3600",)),
    "lab up": Entry("lab:up", ("nfq-enforcer lab up --run-id mine --memory",)),
    "lab demo": Entry("lab:demo", ("nfq-enforcer lab demo --run-id mine", "nfq-enforcer lab demo --hosts hosts.yaml")),
    "lab down": Entry("lab:down", ("nfq-enforcer lab down --run-id mine", "nfq-enforcer lab down --all")),
    "lab exec": Entry(
        "lab:execute",
        ("nfq-enforcer lab exec --run-id mine front1 -- ping -c 1 10.31.2.11",),
        _OPTIONS_OF_OTHERS,
    ),
    "run": Entry(
        "run_command:run",
        ("nfq-enforcer run --label role=frontend -- curl http://10.0.7.11:8080/",),
        _OPTIONS_OF_OTHERS,
    ),
    "cleanup": Entry("cleanup:cleanup", ("nfq-enforcer cleanup",)),
    "completion": Entry(
        "completion:completion",
        ("source <(nfq-enforcer completion bash)", "nfq-enforcer completion fish | source"),
    ),
    "version": Entry("version:version", ("nfq-enforcer version",)),
}
