"""The agent on a device: makes the key, enrols, connects, renews."""
