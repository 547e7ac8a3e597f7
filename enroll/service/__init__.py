"""What admins and devices can do with the fleet: each use case is one transaction, done whole or not at all.

`administration`  principals, show, suspend, resume, revoke
`invitations`     invite, invite_all, check_orders, find_token, revoke_token, enrolled_by, revoke_some_enrolled, tokens
`requests`        requests, find_request, check_approvable, approve, deny
`enrolment`       Enrolment: enrol, pair, reenrol (needs the CA; the others do not)
`waiting`         what waits for an admin, within `enrolment`
`admission`       admit: who a client certificate is, now
"""

from enroll.service.administration import Details, principals, resume, revoke, show, suspend
from enroll.service.admission import NotAdmitted, NotAllowed, Peer, admit
from enroll.service.enrolment import Enrolment, Issued
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
from enroll.service.requests import approve, check_approvable, deny, find_request, requests
from enroll.service.waiting import Asker, RequestDenied, TooManyWaiting, Waiting

__all__ = [
    "Asker",
    "Details",
    "Enrolment",
    "Invitation",
    "Issued",
    "NotAdmitted",
    "NotAllowed",
    "Peer",
    "RequestDenied",
    "TooManyWaiting",
    "Waiting",
    "admit",
    "approve",
    "check_approvable",
    "check_orders",
    "deny",
    "enrolled_by",
    "find_request",
    "find_token",
    "invite",
    "invite_all",
    "principals",
    "requests",
    "resume",
    "revoke",
    "revoke_some_enrolled",
    "revoke_token",
    "show",
    "suspend",
    "tokens",
]
