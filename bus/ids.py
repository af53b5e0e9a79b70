"""Ids as distinct types, and how fresh ones are made.

Ids that reach a client are unguessable (128 random bits): knowing one adapter's id tells nothing
about another's. Names are what people choose; they are never used as paths.
"""

import re
import secrets
from typing import NewType

from .errors import InvalidName

TenantId = NewType("TenantId", str)
AdapterId = NewType("AdapterId", str)
RequestId = NewType("RequestId", str)
LaneId = NewType("LaneId", str)
ActorId = NewType("ActorId", str)

# Where none was given yet.
NO_ADAPTER = AdapterId("")
NO_LANE = LaneId("")

# Whoever reaches the ipc socket in the 0700 run directory is the user who started the daemon.
LOCAL_TENANT = TenantId("local")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")


def new_adapter_id() -> AdapterId:
    return AdapterId(f"ad-{secrets.token_hex(16)}")


def new_request_id() -> RequestId:
    return RequestId(secrets.token_hex(16))


def new_lane_id() -> LaneId:
    return LaneId(f"ln-{secrets.token_hex(16)}")


def checked_name(name: str, *, what: str) -> str:
    """Return the name if a person may give it to an adapter or a checkpoint.

    Raises:
        InvalidName: it is empty, over 128 characters, or holds a character outside
            letters, digits and ``. _ : @ -``.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidName(
            f"{name[:80]!r} cannot name {what}: use 1 to 128 letters, digits and . _ : @ -, "
            "beginning with a letter or a digit, without '..'"
        )
    return name
