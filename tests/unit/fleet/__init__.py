"""The contract, property by property."""
