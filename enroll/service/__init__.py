"""What admins and devices can do with the fleet: each use case is one transaction, done whole or not at all.

`administration`  invite, revoke_token, tokens; principals, show, suspend, resume, revoke
`enrolment`       Enrolment: enrol, reenrol (needs the CA; the others do not)
`admission`       admit: who a client certificate is, now
"""

from enroll.service.administration import (
    Details,
    Invitation,
    invite,
    principals,
    resume,
    revoke,
    revoke_token,
    show,
    suspend,
    tokens,
)
from enroll.service.admission import NotAdmitted, Peer, admit
from enroll.service.enrolment import Enrolment, Issued, NotAllowed

__all__ = [
    "Details",
    "Enrolment",
    "Invitation",
    "Issued",
    "NotAdmitted",
    "NotAllowed",
    "Peer",
    "admit",
    "invite",
    "principals",
    "resume",
    "revoke",
    "revoke_token",
    "show",
    "suspend",
    "tokens",
]
