"""Another rank as rank 0 knows it: its process, and where the two are in their conversation (`frames`).

A rank that dies ends the trainer: the supervisor starts all of it again, and the journal's recovery goes on. So
nothing here answers anybody with an error of its own.
"""

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from ...bus.errors import StartFailed
from ..members import Member
from ..model_pass import RowsResult
from ..row_memory import ran_out
from .bundle import packed, results_of, room_for_results
from .channel import Channel
from .frames import (
    Busy,
    Done,
    Failed,
    FromRank,
    Give,
    Go,
    NoRoom,
    Over,
    Room,
    ToRank,
)
from .lost import END_S, end_trainer
from .transfer import begin_to_send, receive


class Peer:
    """alive: called while it is waited for, as it gets on."""

    def __init__(
        self,
        rank: int,
        channel: Channel[ToRank, FromRank],
        process: "subprocess.Popen[bytes]",
        device: torch.device,
    ) -> None:
        self.rank = rank
        self.alive: Callable[[], None] = _nobody_asks
        self._channel = channel
        self._process = process
        self._device = device
        self._leaving = False
        self._state: Literal["idle", "asked", "room", "works", "done"] = "idle"
        self._members: list[Member] = []
        self._tensors: list[Tensor] = []
        self._sent: list[dist.Work] = []

    # --- its life --------------------------------------------------------------------------------

    def watch(self) -> None:
        """From here on its death is noticed at once, whatever rank 0 is at."""
        self._channel.watch(self._gone)

    def told(self, kind: type[FromRank]) -> None:
        """Wait for a frame of its start. Raises StartFailed: it cannot."""
        frame = self._receive()
        if isinstance(frame, Failed):
            raise StartFailed(f"rank {self.rank} of the trainer cannot start: {frame.reason}")
        assert isinstance(frame, kind), "out of step"

    def tell(self, frame: ToRank) -> None:
        with self._or_lost():
            self._channel.send(frame)

    def leave(self) -> None:
        self._leaving = True
        self._channel.shut()

    def wait_until_gone(self) -> None:
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _gone(self) -> None:
        if not self._leaving:
            end_trainer(self.rank, self._process)

    def lost(self, why: str) -> NoReturn:
        end_trainer(self.rank, self._process, why)

    # --- a pass ----------------------------------------------------------------------------------

    def offer(self, members: Sequence[Member]) -> None:
        """Its share of a pass."""
        work, self._tensors = packed(members)
        self._members = list(members)
        self.tell(work)
        self._state = "asked"

    def has_room(self) -> bool:
        self._state = "room" if isinstance(self._receive(), Room) else "idle"
        return self._state == "room"

    def go(self) -> None:
        """Begin to send what it needs; it computes when all has come."""
        self.tell(Go())
        self._state = "works"
        with self._or_lost():
            self._sent = begin_to_send(self._tensors, self.rank)

    def done(self) -> Done:
        """Wait until it has computed. Raises torch.OutOfMemoryError: it had no room for that."""
        while isinstance(frame := self._receive(), Busy):
            self.alive()
        self._state = "done" if isinstance(frame, Done) else "idle"
        with self._or_lost():
            for work in self._sent:
                work.wait()
        if isinstance(frame, Done):
            return frame
        assert isinstance(frame, NoRoom), "out of step"
        raise torch.OutOfMemoryError(f"rank {self.rank} has no room for its share of a pass")

    def results(self, done: Done) -> list[RowsResult]:
        numbers_n = room_for_results(self._members, self._device)
        self.fetch(-1, numbers_n)
        return results_of(self._members, done.members, numbers_n)

    def fetch(self, member: int, into: Tensor) -> None:
        """The gradients of one of its members, as `Give` says."""
        self.tell(Give(member))
        with self._or_lost():
            receive([into], self.rank)

    def over(self) -> None:
        """Whatever it was at, it waits for the next pass, and nothing is held for it."""
        if self._state == "asked":
            self.has_room()
        if self._state == "works":
            with contextlib.suppress(torch.OutOfMemoryError):
                self.done()
        if self._state != "idle":
            self.tell(Over())
            self._state = "idle"
        self._members, self._tensors, self._sent = [], [], []

    def _receive(self) -> FromRank:
        with self._or_lost():
            return self._channel.receive()

    @contextlib.contextmanager
    def _or_lost(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            self.lost(str(error))
        except RuntimeError as error:
            if ran_out(error):
                raise
            self.lost(str(error))  # of torch.distributed: a connection was closed


def _nobody_asks() -> None:
    pass
