"""nfq_enforcer: a host-based, identity-aware network policy engine for Linux."""

__version__ = "0.1.0"
