"""The lab: a cluster of many nodes on one machine, in network namespaces, with real traffic between its hosts."""
