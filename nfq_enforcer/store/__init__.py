"""Stores, the sources of an agent's cluster: documents in files for one host, or Redis for a cluster."""
