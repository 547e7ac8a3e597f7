"""What one client, and all together, may take of a broker: `[broker.limits]` in `fleet.toml`, with defaults."""

from __future__ import annotations

from dataclasses import dataclass

from fleet.identity import Role

_SPEAKS_FOR_MANY = frozenset({Role.OPERATOR, Role.SERVICE})


@dataclass(frozen=True, slots=True)
class Limits:
    """Every value is above 0. Rates and queues are a device's; operators and services have a multiple of them."""

    handshake_seconds: float = 10.0
    connect_seconds: float = 10.0
    packet_seconds: float = 60.0  # from the first byte of a packet to its last
    max_connections: int = 20_000
    max_pending_connections: int = 4_000  # not let in yet; the oldest of them gives way
    sessions_per_principal: int = 8  # DESIGN section 6; a device has one client id, and so one
    connects_per_minute: int = 120  # DESIGN section 6
    messages_per_second: int = 200  # packets of any kind but expected acknowledgements; beyond it, read more slowly
    bytes_per_second: int = 1_048_576
    burst_seconds: float = 10.0  # how long a rate may have been saved up for
    slowed_seconds: float = 3600.0  # without a break, then cut; a week of a message a second is sent in less
    denials_per_connection: int = 1000
    max_connect_bytes: int = 16_384  # before it is known who asks; a will says little
    max_packet_bytes: int = 262_144
    max_topic_bytes: int = 1024
    max_topic_levels: int = 32
    max_subscriptions: int = 1_000_000
    subscriptions_per_session: int = 100
    inflight_per_session: int = 100
    queued_messages_per_session: int = 1000
    queued_bytes_per_session: int = 1_048_576
    retained_per_principal: int = 100
    retained_bytes_per_principal: int = 1_048_576
    multiple_for_services: int = 50

    def multiple_for(self, role: Role) -> int:
        """How many times a device's rates and queues this role may have."""
        return self.multiple_for_services if role in _SPEAKS_FOR_MANY else 1
