"""The cluster as one node has it: records, names, and the replica that compiles them into a snapshot."""
