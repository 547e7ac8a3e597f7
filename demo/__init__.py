"""`./dev demo`: a fleet on this machine, from the first key to a revoked device."""
