"""Agent of a node: configuration, wiring, reconciler, API."""
