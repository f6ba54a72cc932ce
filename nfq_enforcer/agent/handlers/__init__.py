"""Handlers of the agent's API, one module for each noun."""
