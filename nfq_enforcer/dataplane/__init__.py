"""Edges of the data path: rules of iptables and nftables, NFQUEUE, and the worker processes that return verdicts."""
