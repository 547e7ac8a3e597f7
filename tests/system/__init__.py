"""Real processes, real TLS, real installations."""
