"""Whose signature this device believes: what the service said last, remembered for good.

Once a service has named a signer, nothing unsigned is taken any more, whatever anybody says later: only the signers
themselves change. A file that is damaged is read as one that names none: nothing is taken until the service is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from device_agent.store import Disk, replace_file
from device_agent.verdicts import Trust
from fleet import messages, signers
from fleet.errors import InvalidInput
from fleet.layout import AgentHome
from fleet.signers import Chain, key_id_of


@dataclass(frozen=True, slots=True)
class Signers:
    """What is believed; `chains` are none unless it is signed."""

    trust: Trust = Trust.UNKNOWN
    chains: tuple[Chain, ...] = ()

    @property
    def key_ids(self) -> tuple[str, ...]:
        return tuple(map(key_id_of, self.chains))

    def told(self, chains: tuple[Chain, ...]) -> Signers:
        """What is believed once the service has named these signers. It cannot take back that there are any."""
        if chains:
            return Signers(Trust.SIGNED, chains)
        return self if self.trust is Trust.SIGNED else Signers(Trust.UNSIGNED)


def load(home: AgentHome) -> Signers:
    """What an earlier run was told."""
    try:
        fields = messages.decode_object(_file(home).read_bytes(), max_bytes=signers.MAX_BYTES)
        return Signers().told(signers.from_json(fields.get("signers")))
    except FileNotFoundError:
        return Signers()
    except (OSError, InvalidInput):
        return Signers(Trust.SIGNED)


def save(disk: Disk, home: AgentHome, found: Signers) -> None:
    """Remember them. Raises: OSError."""
    fields = {"v": 1, "signers": signers.to_json(found.chains)}
    replace_file(disk, _file(home), messages.encode_object(fields) + b"\n")


def _file(home: AgentHome) -> Path:
    return home.path / "signers.json"
