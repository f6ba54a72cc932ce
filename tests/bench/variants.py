"""The engine's variants: each driver, in each mode of the data path, with few policies and with many."""

from typing import NamedTuple

import yaml

from nfq_enforcer.agent.config import Config
from nfq_enforcer.errors import DocumentErrors
from nfq_enforcer.policy import yaml_source
from nfq_enforcer.policy.validation import validate
from tests.bench.population import FEW, MANY

DRIVERS = ("netlink", "netfilterqueue")  # goals apply to the engine with the first supported one
PER_PACKET, PER_FLOW = "per-packet", "per-flow"
DATAPATHS = (PER_PACKET, PER_FLOW)


class Variant(NamedTuple):
    """Variant: the engine with these settings."""

    driver: str
    datapath: str
    policies: int

    @property
    def name(self) -> str:
        """Return the variant's name in tables and JSON."""
        return f"nfq_enforcer, {self.driver}, {self.datapath}, {self.policies:,} policies"

    @property
    def settings(self) -> dict[str, str]:
        """Return the agent's settings."""
        return {"driver": self.driver, "datapath": self.datapath}


VARIANTS = tuple(
    Variant(driver, datapath, policies) for driver in DRIVERS for datapath in DATAPATHS for policies in (FEW, MANY)
)


def refusal(variant: Variant) -> str | None:
    """Return the agent's reason to refuse the variant's settings; None if it supports them."""
    (source,) = yaml_source.parse(yaml.safe_dump(variant.settings), variant.name)
    try:
        validate(Config, source.data, source)
    except DocumentErrors as refused:
        return "; ".join(error.message for error in refused.errors)
    return None
