"""Workloads: endpoints that sources on this node name, such as containers, pods and processes."""
