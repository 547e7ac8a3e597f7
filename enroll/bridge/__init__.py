"""Devices shown to Home Assistant: a service principal reads them and tells the broker that Home Assistant uses.

`units` and `entities` say what of a message becomes what, `house` is all that Home Assistant is to know (pure);
`second` is the other broker, `bridge` keeps the two connections. No byte of a device is passed on: numbers and on or
off are, under topics that are made here, and never a template.
"""
