"""Replay of recorded flows: the verdict that given documents have for each."""

from collections.abc import Mapping
from typing import NamedTuple

from nfq_enforcer.policy.ports import FIRST
from nfq_enforcer.policy.probes import Family
from nfq_enforcer.policy.recorded import RecordedEnd, RecordedFlow
from nfq_enforcer.policy.simulation import ConnectionResult, Simulation, verdict_word

_FAMILIES: Mapping[int, Family] = {4: "IPv4", 6: "IPv6"}


class ReplayVerdict(NamedTuple):
    """ReplayVerdict: the verdict on a recorded flow, with its reason."""

    allowed: bool
    restricted: bool  # allowed for some requests only, and the flow has none
    reason: str

    def __str__(self) -> str:
        """Render as ``allow``, ``allow some requests`` or ``deny``."""
        return "allow some requests" if self.restricted else verdict_word(self.allowed)


class Replay:
    """Replay: evaluates recorded flows in a simulation."""

    def __init__(self, simulation: Simulation, references: Mapping[RecordedEnd, str]) -> None:
        """Set the simulation, and the references by which it knows the ends."""
        self._simulation = simulation
        self._references = references

    def knows(self, flow: RecordedFlow) -> bool:
        """Return whether both ends exist in the simulation, and rules can name the protocol."""
        return flow.source in self._references and flow.target in self._references and flow.traffic.proto in FIRST

    def evaluate(self, flow: RecordedFlow) -> ReplayVerdict:
        """Return the verdict; a target outside is evaluated by its address, then by its DNS names."""
        results = []
        for target in (self._references[flow.target], *(f"fqdn:{name}" for name in flow.target.fqdns)):
            result = self._evaluate(flow, target)
            if result.allowed:
                return _verdict(result)
            results.append(result)
        return _verdict(results[0])

    def _evaluate(self, flow: RecordedFlow, target: str) -> ConnectionResult:
        family = _FAMILIES[flow.source.address.version]
        pair = self._simulation.pair(self._references[flow.source], target, family)
        return self._simulation.evaluate(pair, flow.traffic)


def _verdict(result: ConnectionResult) -> ReplayVerdict:
    return ReplayVerdict(result.allowed, result.restricted, result.reason)
