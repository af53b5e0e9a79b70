"""Where a process can be made to die on purpose, to show that nothing is lost there.

`LORACTL_CRASH_AT="name"` kills the process that passes this point, as `kill -9` would; "name:3" the third
time it does; "name:3, other" takes whichever comes first. An actor that is started again does not die once
more. Unset, a point costs one look-up.
"""

import os
import signal

from .config import crash_setting


def _read(setting: str) -> dict[str, int]:
    """How often each point is still passed alive, and once more."""
    points = [point.strip().partition(":") for point in setting.split(",") if point.strip()]
    return {name: int(nth or 1) for name, _, nth in points}


_armed = _read(crash_setting())


def crash_point(name: str) -> None:
    """Die here, if this process was told to."""
    if name not in _armed:
        return
    _armed[name] -= 1
    if _armed[name] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
