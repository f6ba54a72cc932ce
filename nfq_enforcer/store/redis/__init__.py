"""The store on Redis, shared by the nodes of a cluster."""
