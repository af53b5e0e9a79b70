"""What all messages share: the base class, the envelope, the array types."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..ids import RequestId, TenantId

# Metadata of an array that is left out where it is empty: journals have messages that do not know it.
LATE: Mapping[str, bool] = {"late": True}

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
LossName = Literal["cross_entropy", "importance_sampling", "ppo", "cispo", "dro", "gspo", "stable_reinforce"]
StopReason = Literal["stop", "length", "abort"]
EngineName = Literal["vllm", "torch"]
ActorRole = Literal["trainer", "sampler", "bridge"]
ActorPhase = Literal["starting", "ready", "stopping", "restarting", "failed"]


class Message:
    """Base of everything on the wire."""

    kind: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A message with whose it is and which request it belongs to.

    `last` is False on every part of a streamed answer but the final one.
    """

    request: RequestId
    tenant: TenantId
    body: Message
    last: bool = True
