"""Parts of the agent that its API handlers read and change."""

from dataclasses import dataclass

from nfq_enforcer.agent.captures import Captures
from nfq_enforcer.agent.config import Config
from nfq_enforcer.agent.interface_check import InterfaceCheck
from nfq_enforcer.agent.name_learner import NameLearner
from nfq_enforcer.agent.reconciler import Reconciler
from nfq_enforcer.agent.request_log import RequestLog
from nfq_enforcer.agent.slot_keeper import SlotKeeper
from nfq_enforcer.agent.watch import Watch
from nfq_enforcer.agent.work_report import WorkReport
from nfq_enforcer.agent.workloads import Workloads
from nfq_enforcer.cluster.names import Names
from nfq_enforcer.cluster.replica import NodeSettings, Replica
from nfq_enforcer.cluster.source import Store
from nfq_enforcer.dataplane.rules.iptables import Rules
from nfq_enforcer.dataplane.rules.ruleset import AddressFamily
from nfq_enforcer.dataplane.worker.workers import Workers
from nfq_enforcer.errors import NfqError, OutcomeUnknown
from nfq_enforcer.observe.flow import EventIds, Logged
from nfq_enforcer.observe.log import FlowLog
from nfq_enforcer.observe.workload_flows import WorkloadFlows
from nfq_enforcer.workloads.processes import Processes


@dataclass(frozen=True)
class Parts:
    """Parts: the objects of a running agent."""

    config: Config
    settings: NodeSettings
    families: tuple[AddressFamily, ...]
    store: Store
    replica: Replica
    reconciler: Reconciler
    workers: Workers
    rules: Rules
    log: FlowLog[Logged]
    event_ids: EventIds
    interfaces: InterfaceCheck
    started: float  # s since the epoch
    watch: Watch
    work: WorkReport
    learner: NameLearner
    slots: SlotKeeper
    requests: RequestLog
    workloads: Workloads
    processes: Processes
    captures: Captures
    workload_flows: WorkloadFlows | None  # None: the configuration asks for no such metrics

    async def reconcile(self, done: str) -> None:
        """Enforce the store's changes; raise OutcomeUnknown if that fails now: the reconciler goes on trying.

        ``done`` is the part of the change that is certain.
        """
        try:
            await self.reconciler.reconcile()
        except NfqError as error:
            raise OutcomeUnknown(f"{done}, but not in force on this node yet, which goes on trying: {error}") from None

    @property
    def names(self) -> Names:
        """Return the names of identities, addresses and nodes."""
        return self.reconciler.view.names
