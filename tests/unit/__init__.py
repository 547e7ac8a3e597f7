"""The packages, driven with literal values and times."""
