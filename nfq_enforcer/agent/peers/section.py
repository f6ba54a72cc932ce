"""Section ``peers`` of the configuration: connections between the agents, for ``observe --all-nodes``."""

from typing import Annotated

from pydantic import AfterValidator, ConfigDict

from nfq_enforcer.agent.config_fields import absolute_file, host_and_port, listening_address
from nfq_enforcer.policy.validation import Part

_Address = Annotated[str, AfterValidator(listening_address("10.0.0.1:9964 or [::]:9964", "none"))]
_File = Annotated[str, AfterValidator(absolute_file)]


class PeersSection(Part):
    """Section peers: mutual TLS between the agents; none by default: flows of other nodes come through the store.

    Either all keys have a value, or none.
    """

    model_config = ConfigDict(alias_generator=str, validate_default=True, hide_input_in_errors=True)

    listen: _Address = ""  # address and port, which other nodes reach
    ca_file: _File | None = None  # of the authority of all agents' certificates, and of no others
    cert_file: _File | None = None  # of this node: its name is a subject alternative name, as DNS:NAME
    key_file: _File | None = None

    @property
    def is_whole(self) -> bool:
        """Return whether all keys have a value, or none."""
        return len({bool(value) for value in (self.listen, self.ca_file, self.cert_file, self.key_file)}) == 1

    @property
    def listening(self) -> tuple[str, int] | None:
        """Return address and port; None while connections between the agents are not configured."""
        return host_and_port(self.listen)
