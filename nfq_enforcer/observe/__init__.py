"""What is seen of the verdicts: flows in Hubble's shape, and the log that keeps the last of them."""
