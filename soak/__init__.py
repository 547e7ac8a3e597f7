"""Random load on a real broker, and an account of every message that is owed."""
