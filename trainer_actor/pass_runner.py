"""Runs pieces of operations as passes over the base model, and what to do where memory runs out.

What else was in a pass is noted with every piece, where it matters (`compositions`); a piece that was noted
before runs in such a pass again.
"""

import time
from collections.abc import Mapping, Sequence

import structlog
import torch

from ..bus.errors import InvalidData
from .compositions import PassShape, RunShape, packed_seats
from .compute import Compute
from .members import Member, filler
from .model_pass import RowsResult
from .part_run import PartRun
from .row_memory import RowMemory, fits

log = structlog.get_logger()


class PassRunner:
    def __init__(self, compute: Compute, memory: RowMemory) -> None:
        self._compute = compute
        self._memory = memory
        self._number = 0

    def run(self, runs: Sequence[PartRun]) -> None:
        """The next piece of each in one pass. Runs without room beside others have passes of their own.

        Those that run again in a noted pass do so with those of the same one. Of several of one slot all are at their last piece; after a restart the first may be no more, and
        those behind it wait.
        """
        assert all(run.left for run in runs), "each has a piece left"
        slots_alone = {run.part.slot for run in runs if run.alone}
        together = [run for run in runs if run.part.slot not in slots_alone]
        while together:
            seated, together = _seated(together)
            self._attempt(seated)
        unfinished: set[int] = set()
        for run in runs:
            slot = run.part.slot
            if (run.alone or slot in slots_alone) and run.left and slot not in unfinished:
                self._attempt([run])
                if run.left:
                    unfinished.add(slot)

    def _attempt(self, runs: Sequence[PartRun]) -> None:
        if fits(self._memory, lambda: self._pass(runs)):
            return
        shape = runs[0].shape
        if shape is not None:
            log.warning("composition.too_large", positions=shape.positions)
        if len(runs) > 1 or shape is not None:
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
        shape = runs[0].shape
        if shape is None:
            ordered = sorted(runs, key=_layout_number)
            places = {id(run): place for place, run in enumerate(ordered)}
            members = [run.member() for run in ordered]
        else:
            places = {id(run): run.seat.place for run in runs if run.seat is not None}
            present = {places[id(run)]: run.member() for run in runs}
            members = _filled(shape, present, self._memory.device)
        results = self._compute.run(members)
        if shape is None and self._compute.neighbours_matter:
            shape = self._shape(ordered, members, results)
        seats = packed_seats(shape) if shape is not None else None
        for run in runs:
            place = places[id(run)]
            run.ran(results[place], seats[place] if seats is not None else None)

    def _shape(
        self, runs: Sequence[PartRun], members: Sequence[Member], results: Sequence[RowsResult]
    ) -> PassShape:
        self._number = max(self._number + 1, time.time_ns() // 1000)
        groups = {number: group for group, number in enumerate(dict.fromkeys(map(_layout_number, runs)))}
        shapes = [
            RunShape(
                lengths=tuple(member.rows.lengths),
                group=groups[run.layout_number],
                targets=member.rows.targets_t[0].numel(),
                backward=member.backward,
                whole=run.whole,
                kept=result.kept,
            )
            for run, member, result in zip(runs, members, results, strict=True)
        ]
        return PassShape(self._number, tuple(shapes))


def _seated(runs: Sequence[PartRun]) -> tuple[list[PartRun], list[PartRun]]:
    """Those for the next pass, and others: of a noted pass each place is taken once, and what waits behind
    another of its slot goes on waiting."""
    taken: dict[int, PartRun] = {}
    rest: list[PartRun] = []
    for run in runs:
        assert run.shape == runs[0].shape, "they run in the same pass"
        if run.seat is None:
            return list(runs), []
        if run.seat.place in taken or any(other.part.slot == run.part.slot for other in rest):
            rest.append(run)
        else:
            taken[run.seat.place] = run
    return list(taken.values()), rest


def _filled(shape: PassShape, present: Mapping[int, Member], device: torch.device) -> list[Member]:
    """All of a pass, with fillers for those who are not there."""
    like = {shape.runs[place].group: member for place, member in present.items()}
    return [
        present.get(place) or filler(run, like.get(run.group), device) for place, run in enumerate(shape.runs)
    ]


def fitting(runs: Sequence[PartRun], tokens: int) -> list[PartRun]:
    """The first, and what follows while its next pieces fit beside it."""
    chosen: list[PartRun] = []
    for run in runs:
        piece = run.pieces[-run.left]
        if chosen and (piece > tokens or run.shape != chosen[0].shape):
            break
        chosen.append(run)
        tokens -= piece
    return chosen


def _layout_number(run: PartRun) -> int:
    return run.layout_number
