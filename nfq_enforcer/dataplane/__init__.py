"""The data path's edges: iptables and ipset, the queue, and the worker process that gives the verdicts."""
