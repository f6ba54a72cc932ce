"""The shared store: a cluster's records on Redis."""
