"""What can be said of a message's signature, with a code for each that is stable: status, log and docs name them."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from device_agent.failures import Words


class Trust(StrEnum):
    """What is known of the service's signatures."""

    UNKNOWN = "unknown"  # it was never asked: nothing is taken before it was
    UNSIGNED = "unsigned"  # it is older than signatures
    SIGNED = "signed"


class Verdict(StrEnum):
    """Whether a message is the fleet's own word. Only `good` is acted on."""

    GOOD = "good"
    UNSIGNED = "unsigned"
    UNKNOWN_SIGNER = "unknown-signer"
    SIGNER_NOT_OURS = "signer-not-ours"
    SIGNER_OUT_OF_DATE = "signer-out-of-date"
    BAD_SIGNATURE = "bad-signature"
    OVERRUN = "too-many-at-once"
    FAILED = "verifier-failed"


_INTRUDER: Final = "whoever can publish on the broker sends commands of their own: look at the broker and its operators"
_WORDS: Final = {
    Verdict.UNSIGNED: Words(
        "it has no signature that can be read", "send it by `enroll send`; a command by hand is not taken"
    ),
    Verdict.UNKNOWN_SIGNER: Words("the service knows no such signing key", _INTRUDER),
    Verdict.SIGNER_NOT_OURS: Words("its signer has no certificate of our root for this", _INTRUDER),
    Verdict.SIGNER_OUT_OF_DATE: Words(
        "its signer's certificate is not valid now", "compare `date` here and on the service's host"
    ),
    Verdict.BAD_SIGNATURE: Words("it is not what was signed, or not for this topic", _INTRUDER),
    Verdict.OVERRUN: Words("too many messages wait for a look at their signature", "they are sent again"),
    Verdict.FAILED: Words(
        "the process that looks at signatures fails", "its words are in the log; is there memory left?"
    ),
}


def words_of(verdict: Verdict) -> Words:
    """What a person wants to know of a refusal."""
    return _WORDS.get(verdict, Words("it is good", ""))
