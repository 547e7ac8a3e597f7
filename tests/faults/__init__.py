"""Faults that the machine makes: power cuts. `./dev soak power-cut` runs the long form."""
