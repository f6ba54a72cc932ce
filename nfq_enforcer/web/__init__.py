"""Servers of the agent: streams over a Unix socket or TCP, and HTTP on top of them."""
