"""The reference firmware, without a socket."""
