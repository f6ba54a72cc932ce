"""Tables that a verdict reads: conntrack, ipcache, policy maps, the snapshot. Pure."""
