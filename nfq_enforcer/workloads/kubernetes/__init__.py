"""Kubernetes: the pods of this node and the policies of the cluster, watched at the API server."""
