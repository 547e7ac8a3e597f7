"""Faults that the machine makes: power cuts. `python -m tests.faults.power_cut` runs the long form."""
