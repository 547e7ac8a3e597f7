"""Libraries without the parts of other libraries that they load and a device never uses: its memory is dear.

`dataclasses` wants `inspect` to describe a class that has no docstring, paho wants `urllib.request` to look for
proxies: 1.2 MB each. What stands in for them loads the real one when something of it is asked for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    """A module that is loaded with its first attribute."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system looks at these
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def postponed(name: str) -> Iterator[None]:
    """What is imported within gets `name` later; who imports it afterwards gets the real one."""
    stand_in = _Later(name)
    if sys.modules.setdefault(name, stand_in) is not stand_in:
        yield
        return
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
