"""The agent of a node: configuration, wiring, reconciler, API."""
