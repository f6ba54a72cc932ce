"""Captures: formats and tools for files of packets: pcapng, a scapy layer and a dissector of Wireshark."""
