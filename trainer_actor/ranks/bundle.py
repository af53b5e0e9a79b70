"""The members of a pass as a frame and a few flat tensors, and back: what a rank gets, and what it gives.

Each row of weights goes once, however many members are of one adapter.

Legend: n = numbers of all members end to end, t = positions of one run, N = elements of a row.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..losses import LossInputs
from ..members import Member, Rows
from ..model_pass import RowsResult
from ..row_layout import RowLayouts
from ..row_memory import RowMemory
from ..row_views import GradientRow, RowViews
from .frames import MemberDone, MemberShape, RowShape, Work


def packed(members: Sequence[Member]) -> tuple[Work, list[Tensor]]:
    """What says how to read the tensors, and these; as many and as long as `Taken` receives."""
    weights = {id(member.weights): member.weights for member in members if member.weights is not None}
    places = {key: place for place, key in enumerate(weights)}
    work = Work(
        rows=[RowShape(views.layout.rank, views.layout.sections) for views in weights.values()],
        members=[_shape(member, places.get(id(member.weights), -1)) for member in members],
    )
    ids = [each for member in members for each in (member.rows.tokens_t, member.rows.targets_t.flatten())]
    floats = [each.flatten() for member in members for each in _inputs(member.rows.inputs) if each.numel()]
    floats_n = torch.cat(floats) if floats else torch.empty(0)
    return work, [torch.cat(ids), floats_n, *(views.row_N for views in weights.values())]


def _shape(member: Member, row: int) -> MemberShape:
    rows = member.rows
    return MemberShape(
        lengths=rows.lengths,
        targets=tuple(rows.targets_t.shape),
        inputs=tuple(tuple(each.shape) for each in _inputs(rows.inputs)),
        loss=rows.loss,
        settings=dict(rows.settings),
        scale=member.scale,
        row=row,
        backward=member.backward,
        filler=member.filler,
    )


def _inputs(inputs: LossInputs) -> tuple[Tensor, ...]:
    return inputs.weights_T, inputs.old_logprobs_T, inputs.advantages_T, inputs.ratio_mask_T


class Taken:
    """A rank's copies of members. tensors: what they are received into, as `packed` has them."""

    def __init__(
        self, work: Work, layouts: RowLayouts, memory: RowMemory, weights_dtype: torch.dtype
    ) -> None:
        """Raises torch.OutOfMemoryError."""
        self._memory = memory
        self._held: list[RowViews] = []
        try:
            weights = [self._row(layouts, shape, weights_dtype) for shape in work.rows]
            ids_n = _Numbers(
                torch.empty(sum(map(_id_count, work.members)), dtype=torch.int64, device=memory.device)
            )
            floats_n = _Numbers(torch.empty(sum(map(_float_count, work.members)), device=memory.device))
            self.tensors = [ids_n.all_n, floats_n.all_n, *(views.row_N for views in weights)]
            self.members = [
                self._member(shape, ids_n, floats_n, weights[shape.row] if shape.row >= 0 else None)
                for shape in work.members
            ]
        except BaseException:
            self.give_back()
            raise

    def give_back(self) -> None:
        """Nobody uses its rows from here on."""
        while self._held:
            self._memory.give(self._held.pop())

    def _row(self, layouts: RowLayouts, shape: RowShape, dtype: torch.dtype) -> RowViews:
        self._held.append(self._memory.take(layouts.at(shape.rank, shape.sections), dtype))
        return self._held[-1]

    def _member(
        self, shape: MemberShape, ids_n: "_Numbers", floats_n: "_Numbers", weights: RowViews | None
    ) -> Member:
        gradients = None
        if shape.backward and shape.filler is None:
            assert weights is not None
            self._held.append(self._memory.take(weights.layout, torch.float32))
            gradients = GradientRow(self._held[-1])
        tokens_t, targets_t = ids_n.next((sum(shape.lengths),)), ids_n.next(shape.targets)
        inputs = [floats_n.next(each) for each in shape.inputs]
        rows = Rows(
            lengths=shape.lengths,
            tokens_t=tokens_t,
            targets_t=targets_t,
            inputs=_loss_inputs(inputs, torch.tensor(shape.lengths, device=self._memory.device)),
            loss=shape.loss,
            settings=shape.settings,
        )
        return Member(rows=rows, scale=shape.scale, weights=weights, gradients=gradients, filler=shape.filler)


def _loss_inputs(inputs: Sequence[Tensor], lengths_B: Tensor) -> LossInputs:
    weights_T, old_logprobs_T, advantages_T, ratio_mask_T = inputs
    return LossInputs(
        weights_T=weights_T,
        old_logprobs_T=old_logprobs_T,
        advantages_T=advantages_T,
        ratio_mask_T=ratio_mask_T,
        lengths_B=lengths_B,
    )


def told(members: Sequence[Member], results: Sequence[RowsResult]) -> list[MemberDone]:
    """What became of members, but for the numbers."""
    return [
        MemberDone(
            finite=result.finite,
            kept=result.kept,
            written=member.gradients.written if member.gradients is not None and result.finite else [],
        )
        for member, result in zip(members, results, strict=True)
    ]


def flat(results: Sequence[RowsResult]) -> Tensor:
    """The numbers of the results, end to end."""
    return torch.cat([each.flatten() for result in results for each in (result.logprobs_t, result.terms_t)])


def room_for_results(members: Sequence[Member], device: torch.device) -> Tensor:
    """To receive into what `flat` has there."""
    return torch.empty(2 * sum(member.rows.targets_t.numel() for member in members), device=device)


def results_of(members: Sequence[Member], done: Sequence[MemberDone], flat_n: Tensor) -> list[RowsResult]:
    numbers_n = _Numbers(flat_n)
    return [
        RowsResult(
            logprobs_t=numbers_n.next(tuple(member.rows.targets_t.shape)),
            terms_t=numbers_n.next(tuple(member.rows.targets_t.shape)),
            finite=each.finite,
            kept=each.kept,
        )
        for member, each in zip(members, done, strict=True)
    ]


def _id_count(shape: MemberShape) -> int:
    return sum(shape.lengths) + math.prod(shape.targets)


def _float_count(shape: MemberShape) -> int:
    return sum(math.prod(each) for each in shape.inputs)


class _Numbers:
    """Many tensors, one after the other in one."""

    def __init__(self, all_n: Tensor) -> None:
        self.all_n = all_n
        self._at = 0

    def next(self, shape: tuple[int, ...]) -> Tensor:
        start, self._at = self._at, self._at + math.prod(shape)
        return self.all_n[start : self._at].view(shape)
