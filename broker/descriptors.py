"""As many connections as the process may have files: more than that would be refused by the kernel, without a word."""

from __future__ import annotations

import logging
import resource
from dataclasses import replace
from typing import Final

from fleet.limits import Limits
from fleet.logs import event

_OTHER_FILES: Final = 128  # the directory, the feed, the log, metrics

_log = logging.getLogger("broker")


def fit(limits: Limits) -> Limits:
    """Raise this process's limit of open files as far as it may; the limits, lowered where that is not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.max_connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return limits
    fitted = within(limits, soft)
    _log.warning(event("limits.lowered", open_files=soft, max_connections=fitted.max_connections))
    return fitted


def within(limits: Limits, open_files: int) -> Limits:
    """The limits with no more connections than fit; a fifth of them may be strangers'."""
    connections = max(1, min(limits.max_connections, open_files - _OTHER_FILES))
    pending = max(1, min(limits.max_pending_connections, connections // 5))
    return replace(limits, max_connections=connections, max_pending_connections=pending)
