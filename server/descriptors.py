"""How many files and sockets the process may have open: each stream is one."""

from __future__ import annotations

import resource

import structlog

log = structlog.get_logger(__name__)


def raise_limit() -> None:
    """Raises the soft limit of open descriptors to the hard one, which is what an operator has set for the process.

    The soft one is often 1,024, for the sake of programs that still use `select`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (
        OSError,
        ValueError,
    ) as error:  # macOS calls its hard limit infinite, and does not accept that as a soft one
        log.warning("the limit of open descriptors stays", soft=soft, hard=hard, error=str(error))
    else:
        log.info("the limit of open descriptors was raised", soft=soft, hard=hard)
