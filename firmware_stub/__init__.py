"""The reference firmware: talks to the agent's local socket and imports nothing else of mqtt-fleet."""
