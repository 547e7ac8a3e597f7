"""The contract that the programs of mqtt-fleet agree on: names, topics, rules, certificates and wire forms; no IO."""
