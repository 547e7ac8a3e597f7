"""What admins and devices can do with the fleet: each use case is one transaction, done whole or not at all.

`administration`  principals, show, suspend, resume, revoke
`grouping`        mark: groups and labels
`invitations`     invite, invite_all, check_orders, revoke_token, enrolled_by, revoke_enrolled, tokens
`decisions`       requests, find_request, check_approvable, approve, deny
`manufacturers`   add_manufacturer, remove_manufacturer, trusted_manufacturers; add_claims, claims, remove_claim, ...
`enrolment`       Enrolment: enrol, pair, claim, reenrol (needs the CA; the others do not)
`recovery`        check_proof, Recovery: recover (a device whose certificate has expired); needs the CA, too
`recoverable`     recoverable, history: whose certificate that is, and what an admin wants to know
`succession`      confirm, end_due: a renewed certificate's predecessor ends after a grace
`lineage`         plan, resolve: an identity that two use, and the checks that notice; `starts` what agents say of it
`waiting`         what waits for an admin; `hardware` what a manufacturer proves; both within `enrolment`
`revocation`      revoke_certificate, revoke_some_issued, count_issued, find_certificate
`admission`       admit: who a client certificate is, now
"""

from enroll.service.administration import Details, principals, resume, revoke, show, suspend
from enroll.service.admission import NotAdmitted, NotAllowed, Peer, admit
from enroll.service.decisions import approve, check_approvable, deny, find_request, requests
from enroll.service.enrolment import Enrolment
from enroll.service.grouping import Change, mark
from enroll.service.hardware import Hardware, hardware_of
from enroll.service.invitations import (
    Invitation,
    check_orders,
    enrolled_by,
    invite,
    invite_all,
    revoke_enrolled,
    revoke_token,
    tokens,
)
from enroll.service.issuance import Issued
from enroll.service.manufacturers import (
    add_claims,
    add_manufacturer,
    allow_once_more,
    check_claims,
    check_known,
    claims,
    new_claim,
    remove_claim,
    remove_manufacturer,
    trusted_manufacturers,
)
from enroll.service.recoverable import History, history
from enroll.service.recovery import ProofRefused, Recovery, check_proof
from enroll.service.revocation import (
    Ended,
    count_issued,
    find_certificate,
    revoke_certificate,
    revoke_some_issued,
)
from enroll.service.waiting import Asker, RequestDenied, TooManyWaiting, Waiting

__all__ = [
    "Asker",
    "Change",
    "Details",
    "Ended",
    "Enrolment",
    "Hardware",
    "History",
    "Invitation",
    "Issued",
    "NotAdmitted",
    "NotAllowed",
    "Peer",
    "ProofRefused",
    "Recovery",
    "RequestDenied",
    "TooManyWaiting",
    "Waiting",
    "add_claims",
    "add_manufacturer",
    "admit",
    "allow_once_more",
    "approve",
    "check_approvable",
    "check_claims",
    "check_known",
    "check_orders",
    "check_proof",
    "claims",
    "count_issued",
    "deny",
    "enrolled_by",
    "find_certificate",
    "find_request",
    "hardware_of",
    "history",
    "invite",
    "invite_all",
    "mark",
    "new_claim",
    "principals",
    "remove_claim",
    "remove_manufacturer",
    "requests",
    "resume",
    "revoke",
    "revoke_certificate",
    "revoke_enrolled",
    "revoke_some_issued",
    "revoke_token",
    "show",
    "suspend",
    "tokens",
    "trusted_manufacturers",
]
