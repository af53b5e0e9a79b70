"""What another rank than 0 does, from its start to its end: `frames` has the conversation."""

import time
from pathlib import Path

import torch

from ...bus.config import Config
from ...bus.errors import StartFailed
from ..compute import OneProcess
from ..device_choice import adapter_dtype_of, device_of, dtype_of, model_directory
from ..hf_config import read_base_model
from ..model_pass import RowsResult
from ..row_layout import RowLayouts
from ..row_memory import RowMemory, fits
from ..tensor_group import tensor_group
from ..torch_setup import set_up_torch
from .bundle import Taken, flat, told
from .channel import Channel
from .frames import Busy, Done, FromRank, Give, Go, NoRoom, Room, ToRank, Work
from .transfer import join_group, own_device, receive, send

_ZERO = 0
_SAY_BUSY_S = 1.0


class Rank:
    def __init__(self, config: Config, rank: int, meeting: Path, channel: Channel[FromRank, ToRank]) -> None:
        """Join the group and load the base model. Raises LoractlError: it cannot."""
        device = own_device(device_of(config), rank)
        set_up_torch(config.trainer, device)
        dtype = dtype_of(config, device)
        base = read_base_model(model_directory(config))
        join_group(meeting, rank, config.trainer.ranks, device)
        self._layouts = RowLayouts(base.shape, tensor_group(config.trainer.tensor_parallel).shard)
        try:
            self._compute = OneProcess.load(config.trainer, base, self._layouts, dtype, device)
        except torch.OutOfMemoryError as error:
            raise StartFailed(f"{base.path} does not fit on {device}") from error
        self._weights_dtype = adapter_dtype_of(device, dtype)
        self._memory = RowMemory(device)
        self._alone = config.trainer.tensor_parallel == 1
        self._channel = channel
        self._said_busy = 0.0
        self._compute.tell_progress(self._say_busy)

    def serve(self) -> None:
        """Until rank 0 is gone. Raises EOFError, OSError."""
        while True:
            work = self._channel.receive()
            assert isinstance(work, Work), "out of step"
            self._take_part(work)

    def _take_part(self, work: Work) -> None:
        taken = self._room_for(work)
        if taken is None:
            self._channel.send(NoRoom())
            return
        try:
            self._channel.send(Room())
            if isinstance(self._channel.receive(), Go):
                receive(taken.tensors, _ZERO)
                self._compute_and_give(taken)
        finally:
            taken.give_back()

    def _room_for(self, work: Work) -> Taken | None:
        found: list[Taken] = []
        fits(
            self._memory,
            lambda: found.append(Taken(work, self._layouts, self._memory, self._weights_dtype)),
        )
        return found[0] if found else None

    def _compute_and_give(self, taken: Taken) -> None:
        results: list[RowsResult] = []

        def work() -> None:
            results.extend(self._compute.run(taken.members))

        if not self._alone:
            work()  # who gave up would leave others in the midst of a sum
        elif not fits(self._memory, work):
            self._channel.send(NoRoom())
            return
        # The ranks of a replica other than its first answer nothing, and are asked for nothing.
        self._channel.send(Done(told(taken.members, results) if results else []))
        while isinstance(wanted := self._channel.receive(), Give):
            send(self._wanted(taken, results, wanted.member), _ZERO)

    def _wanted(self, taken: Taken, results: list[RowsResult], member: int) -> torch.Tensor:
        if member < 0:
            return flat(results)
        gradients = taken.members[member].gradients
        assert gradients is not None
        return gradients.views.row_N

    def _say_busy(self) -> None:
        if time.monotonic() - self._said_busy > _SAY_BUSY_S:
            self._said_busy = time.monotonic()
            self._channel.send(Busy())
