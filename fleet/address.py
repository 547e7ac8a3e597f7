"""Host and port of a server. Apart from `fleet.config`, most of which a device has no use for."""

from __future__ import annotations

from dataclasses import dataclass

from fleet.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens; port 0 takes any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`HOST:PORT`, or `[IPV6]:PORT`. Raises: InvalidInput."""
    host, separator, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    is_plain = bool(bare) and bare.isprintable() and " " not in bare and (":" not in bare or bare != host)
    if not (separator and is_plain and port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise InvalidInput(f"{text[:80]!r} is not an address", hint="write HOST:PORT, as 0.0.0.0:8443 or [::]:8443")
    return Address(bare, int(port))
