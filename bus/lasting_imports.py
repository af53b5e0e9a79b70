"""How an actor imports large libraries: nothing that they make is garbage, so nobody looks for any."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def lasting_imports() -> Iterator[None]:
    """To look through all that is there, again and again as it grows, is an eighth of what a trainer's imports cost."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
