"""Where a process can be made to die on purpose, to show that nothing is lost there.

`LORACTL_CRASH_AT="name"` kills the process that passes this point, as `kill -9` would; "name:3" the third
time it does. An actor that is started again does not die once more. Unset, a point costs one comparison.
"""

import os
import signal

from .config import crash_setting


class _Armed:
    """name: of the point, "" for none. left: how often it is still passed alive, and once more."""

    def __init__(self, setting: str) -> None:
        self.name, _, nth = setting.partition(":")
        self.left = int(nth or 1)


_armed = _Armed(crash_setting())


def crash_point(name: str) -> None:
    """Die here, if this process was told to."""
    if name != _armed.name or not name:
        return
    _armed.left -= 1
    if _armed.left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
