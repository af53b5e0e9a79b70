"""The end of the trainer when another rank is gone: all ranks start again together, as after any death.

Nothing is answered and nothing saved. What is not written down runs again from the journal, to the same bits.
"""

import os
import signal
import subprocess
import threading
from typing import NoReturn

import structlog

log = structlog.get_logger()

# How long a rank that closed its end may take until the system says how it ended.
END_S = 5.0

# Held for ever by the first thread that ends the process; another one waits for that end.
_ending = threading.Lock()


def end_trainer(rank: int, process: "subprocess.Popen[bytes]", why: str = "") -> NoReturn:
    """End this process as that rank ended: killed from outside, or by a fault of its own."""
    _ending.acquire()
    try:
        code: int | None = process.wait(END_S)
    except subprocess.TimeoutExpired:
        code = None
    log.error("rank.lost", rank=rank, pid=process.pid, exit_code=code, why=why)
    if code == -signal.SIGKILL:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(1)
