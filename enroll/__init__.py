"""The enrollment authority: signs certificates for the devices of a fleet and tells brokers whom to let in."""
