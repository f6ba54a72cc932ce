"""Observation of verdicts: flows in Hubble's shape, the flow log, the status and the metrics for Prometheus."""
