"""Random input, with many examples under `./dev fuzz`."""
