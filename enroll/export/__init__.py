"""Telemetry out of the fleet: a service principal reads it from the broker and writes it to a sink.

`readings` says what a message is, `sink` what every sink promises, `exporter` when the broker is acknowledged: not
before the sink has what came on its disk. `source` knows whose identity is used and where the broker is.
"""
