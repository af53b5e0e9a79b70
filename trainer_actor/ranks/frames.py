"""What rank 0 and another rank tell each other beside tensors.

    0 → other  Begin                    who it is, and the settings
    other → 0  Here, then Ready         it lives; it is in the group and has loaded the base model
    0 → other  Work                     the shape of its share of a pass
    other → 0  Room                     there is memory for it
    0 → other  Go, and the tensors
    other → 0  Busy … Done              results are there
    0 → other  Give, again and again    and each time tensors come; Over ends it

In place of any of its answers a rank may say NoRoom, and waits for Work again; in place of Room, Done and
what comes after them rank 0 may say Over. So whoever runs out of memory, all stay in step.
"""

import msgspec

from ...bus.messages import LossName
from ..compositions import RunShape
from ..linears import Section


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """config: as JSON. meeting: the file in which the group finds each other."""

    rank: int
    config: str
    meeting: str


class Here(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """In place of Here or Ready: it cannot start."""

    reason: str


class RowShape(msgspec.Struct, frozen=True, array_like=True):
    """The layout of a row of weights."""

    rank: int
    sections: tuple[Section, ...]


class MemberShape(msgspec.Struct, frozen=True, array_like=True):
    """A part of a member, without its numbers. row: its weights' among those of the pass, -1 for none.
    inputs: the shapes of its loss's inputs."""

    lengths: list[int]
    targets: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...]
    loss: LossName
    settings: dict[str, float]
    scale: float
    row: int
    backward: bool
    filler: RunShape | None


class Work(msgspec.Struct, frozen=True, array_like=True, tag=True):
    rows: list[RowShape]
    members: list[MemberShape]


class Room(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class NoRoom(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Go(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Busy(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class MemberDone(msgspec.Struct, frozen=True, array_like=True):
    """written: linears at which its gradients came; none where nothing is to be fetched."""

    finite: bool
    kept: tuple[int, ...]
    written: list[int]


class Done(msgspec.Struct, frozen=True, array_like=True, tag=True):
    members: list[MemberDone]


class Give(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """member: whose gradients; -1 for the results of all."""

    member: int


class Over(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


ToRank = Begin | Work | Go | Give | Over
FromRank = Here | Ready | Failed | Room | NoRoom | Busy | Done
