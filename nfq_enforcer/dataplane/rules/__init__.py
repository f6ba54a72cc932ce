"""iptables rules and ipsets: rendering, installation, connection marks."""
