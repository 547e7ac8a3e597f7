"""The contract: what the programs agree on. Pure: no clock, no randomness, no input or output."""
