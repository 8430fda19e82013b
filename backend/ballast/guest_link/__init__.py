"""The host end of the agent channel: the conversation, and the trade in blocks of memory on it."""
