"""Processes that compute give way to those that answer: a heartbeat must not wait for a pass of the model."""

import os
import time
from pathlib import Path

import structlog

log = structlog.get_logger()

MOST_NICENESS = 19
_SHARE = Path("/proc/self/autogroup")
# Linux takes one such wish of unprivileged users every tenth of a second, from all of them together.
_AGAIN_S, _TIMES = 0.1, 20


def give_way(niceness: int) -> None:
    """This process, and those that it starts, have less of a CPU that others want, too."""
    if not niceness:
        return
    os.nice(niceness)
    if os.getsid(0) != os.getpid():
        return
    # The CPUs may be shared out among sessions first, and then niceness is for those of one session only.
    for _ in range(_TIMES):
        try:
            _SHARE.write_text(str(niceness))
        except BlockingIOError:
            time.sleep(_AGAIN_S)
        except OSError:
            return  # no such sharing here
        else:
            return
    log.info("niceness.not_shared", niceness=niceness)
