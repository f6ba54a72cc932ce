"""The lab: a cluster of three nodes on one machine, in network namespaces, with real traffic between its hosts."""
