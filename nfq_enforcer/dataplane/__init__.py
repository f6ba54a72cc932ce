"""Edges of the data path: iptables rules and ipsets, NFQUEUE, and the worker processes that return verdicts."""
