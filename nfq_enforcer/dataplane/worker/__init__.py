"""Worker processes: the verdict loop, its process, the channel to the agent."""
