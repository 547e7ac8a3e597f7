"""The reference firmware: measures, obeys three commands, and knows of the agent nothing but its socket."""
