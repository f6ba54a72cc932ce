"""What is seen of the verdicts: flows in Hubble's shape, a log of the last of them, and figures for Prometheus."""
