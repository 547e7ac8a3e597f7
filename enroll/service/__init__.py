"""What admins and devices can do with the fleet: each use case is one transaction, done whole or not at all.

`administration`  principals, show, suspend, resume, revoke
`invitations`     invite, invite_all, check_orders, find_token, revoke_token, enrolled_by, revoke_some_enrolled, tokens
`enrolment`       Enrolment: enrol, reenrol (needs the CA; the others do not)
`admission`       admit: who a client certificate is, now
"""

from enroll.service.administration import Details, principals, resume, revoke, show, suspend
from enroll.service.admission import NotAdmitted, Peer, admit
from enroll.service.enrolment import Asker, Enrolment, Issued, NotAllowed
from enroll.service.invitations import (
    Invitation,
    check_orders,
    enrolled_by,
    find_token,
    invite,
    invite_all,
    revoke_some_enrolled,
    revoke_token,
    tokens,
)

__all__ = [
    "Asker",
    "Details",
    "Enrolment",
    "Invitation",
    "Issued",
    "NotAdmitted",
    "NotAllowed",
    "Peer",
    "admit",
    "check_orders",
    "enrolled_by",
    "find_token",
    "invite",
    "invite_all",
    "principals",
    "resume",
    "revoke",
    "revoke_some_enrolled",
    "revoke_token",
    "show",
    "suspend",
    "tokens",
]
