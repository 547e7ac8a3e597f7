"""Brokers side by side over mutual TLS: who is measured, by what load, and how it is told."""
