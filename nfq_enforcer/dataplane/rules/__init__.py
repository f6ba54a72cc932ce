"""Rules of iptables and a table of nftables: rendering, installation, packet marks and connection marks."""
