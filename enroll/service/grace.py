"""How long a certificate goes on beside its successor."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from enroll.registry import Transaction, endings
from enroll.registry.records import CertificateRecord

GRACE: Final = timedelta(minutes=10)
"""What else on the device has opened it (`mosquitto_pub`, a script) may finish."""
_GRACE_OF_LIFE: Final = 10


def plan_ends(transaction: Transaction, succeeded: Iterable[CertificateRecord], now: datetime) -> None:
    """These have a successor that is in use: each ends after GRACE, or a tenth of a short life."""
    for each in succeeded:
        endings.plan(transaction, each.serial, now + min(GRACE, (each.not_after - each.not_before) / _GRACE_OF_LIFE))
