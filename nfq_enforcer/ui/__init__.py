"""Service map in the browser: a server of its own, which reads an agent's API and serves one page. Read-only."""
