"""Runs pieces of operations as passes over the base model, and what to do where memory runs out."""

from collections.abc import Callable, Sequence

import torch

from ..bus.errors import InvalidData
from .backbone import Backbone
from .model_pass import run_members
from .output import OutputHead
from .part_run import PartRun
from .row_memory import RowMemory


class PassRunner:
    def __init__(self, backbone: Backbone, head: OutputHead, memory: RowMemory) -> None:
        self._backbone = backbone
        self._head = head
        self._memory = memory

    def run(self, runs: Sequence[PartRun]) -> None:
        """The next piece of each in one pass. Runs without room beside others have passes of their own.

        Of several of one slot all are at their last piece; after a restart the first may be no more, and
        those behind it wait.
        """
        assert all(run.left for run in runs), "each has a piece left"
        slots_alone = {run.part.slot for run in runs if run.alone}
        self._attempt([run for run in runs if run.part.slot not in slots_alone])
        unfinished: set[int] = set()
        for run in runs:
            slot = run.part.slot
            if (run.alone or slot in slots_alone) and run.left and slot not in unfinished:
                self._attempt([run])
                if run.left:
                    unfinished.add(slot)

    def _attempt(self, runs: Sequence[PartRun]) -> None:
        if not runs or fits(self._memory, lambda: self._pass(runs)):
            return
        if len(runs) > 1:
            for run in runs:
                run.restart()
            return
        tokens = max(runs[0].pieces)
        runs[0].fail(
            InvalidData(
                f"{tokens} positions do not fit on the device; send fewer, or lower trainer.pass_tokens"
            )
        )

    def _pass(self, runs: Sequence[PartRun]) -> None:
        ordered = sorted(runs, key=_layout_number)
        results = run_members(self._backbone, self._head, [run.member() for run in ordered])
        by_run = dict(zip(map(id, ordered), results, strict=True))
        for run in runs:
            run.ran(by_run[id(run)])


def fits(memory: RowMemory, work: Callable[[], None]) -> bool:
    """Do the work. False: memory ran out on the way, and what could be let go of is let go of."""
    try:
        work()
    except RuntimeError as error:
        # torch has a class for the device's memory only; on a CPU the message is all there is.
        if not (isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)):
            raise
    else:
        return True
    # What the work held is free only once the exception is gone.
    memory.release()
    if memory.device.type == "cuda":
        torch.cuda.empty_cache()
    return False


def fitting(runs: Sequence[PartRun], tokens: int) -> list[PartRun]:
    """The first, and what follows while its next pieces fit beside it."""
    chosen: list[PartRun] = []
    for run in runs:
        piece = run.pieces[-run.left]
        if chosen and piece > tokens:
            break
        chosen.append(run)
        tokens -= piece
    return chosen


def _layout_number(run: PartRun) -> int:
    return run.layout_number
