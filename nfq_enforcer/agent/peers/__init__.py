"""Other nodes' agents: their flows, asked for over a connection to each of them, or by way of the store."""
