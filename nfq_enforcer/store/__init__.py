"""What the cluster agrees on, and this node's replica of it."""
