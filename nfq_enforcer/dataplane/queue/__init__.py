"""NFQUEUE: the queue protocol, two drivers, netlink codecs."""
