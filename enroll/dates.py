"""Who judges the dates of certificates: OpenSSL by the system's clock, or where that is surely wrong, we by the floor.

A context costs nothing more while the clock is right: what is here is put into it only when it is not.
"""

from __future__ import annotations

import ssl

from fleet.clock import NO_CHECK_TIME, FlooredClock


def settle(context: ssl.SSLContext, clock: FlooredClock) -> None:
    """Have the next connections of an event loop's `context` judged by what is known of the time now."""
    if clock.is_floored:
        context.verify_flags |= NO_CHECK_TIME
        context.sslobject_class = _dated(clock)
    elif context.verify_flags & NO_CHECK_TIME:
        context.verify_flags &= ~NO_CHECK_TIME
        context.sslobject_class = ssl.SSLObject


def check(connection: ssl.SSLObject | ssl.SSLSocket, clock: FlooredClock) -> None:
    """Judge the chain that a finished handshake has verified, if the peer has shown one.

    Raises: ssl.SSLCertVerificationError.
    """
    chain = connection._sslobj.get_verified_chain()  # type: ignore[union-attr] # public only from Python 3.13 on
    if chain and (refusal := clock.refusal(each.get_info() for each in chain)):
        error = ssl.SSLCertVerificationError(refusal)
        error.verify_message = refusal  # as OpenSSL's own have one
        raise error


def _dated(clock: FlooredClock) -> type[ssl.SSLObject]:
    """A TLS connection whose handshake fails unless the peer's chain is good now."""

    class Dated(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            check(self, clock)

    return Dated
