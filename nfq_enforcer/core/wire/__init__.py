"""Packet formats: parsing, stamps, ICMP errors, checksums. Pure."""
