"""paho's client without `urllib.request`, which it loads to look for proxies: 1.3 MB, and `mqtt` never asks for one.

What stands in for it is gone when paho is loaded: whoever imports it later gets the real one.
"""

from __future__ import annotations

import sys
from types import ModuleType

_NAME = "urllib.request"
_is_absent = _NAME not in sys.modules
if _is_absent:
    sys.modules[_NAME] = ModuleType(_NAME)
import paho.mqtt.client as client  # noqa: E402 - here, because of what is before it

if _is_absent:
    del sys.modules[_NAME]

__all__ = ["client"]
