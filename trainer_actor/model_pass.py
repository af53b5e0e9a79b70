"""One pass over the base model: forward, losses, backward into scratch rows.

Several runs share it, each a piece of some operation, of the same adapter or of different ones. What
backward computes goes to scratch rows, so whoever called decides what of it joins an adapter's
gradients. A run whose losses are not finite takes no part in the backward.

A tensor parallel group runs it together: its first rank alone has losses, results and the whole gradients.

Legend: T = positions of the pass, t = of one run. Targets and what is computed of them are [t], or [t, K]
where a position has K of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .backbone import Backbone
from .compositions import RunShape
from .lora_grouped import GroupedPass
from .lora_pass import LoraPass, LoraSegment, SegmentedPass
from .losses import WHOLE_SEQUENCE, terms_and_slopes
from .members import Member
from .output import HeadRun, OutputHead, run_head
from .packing import pack
from .tensor_group import TensorGroup


@dataclass(frozen=True, slots=True)
class RowsResult:
    """logprobs [t] and terms [t] of one `Rows`; finite False: its gradients are not to be used. kept: as in
    `compositions`."""

    logprobs_t: Tensor
    terms_t: Tensor
    finite: bool
    kept: tuple[int, ...]


def run_members(backbone: Backbone, head: OutputHead, members: Sequence[Member]) -> list[RowsResult]:
    """Run them as one pass. Nothing but their gradient rows changes. Those of one layout stand side by side.

    Collective: every rank of a tensor parallel group calls it with the same members, over adapters' rows that
    are whole and equal. The first one's gradient rows then hold what one process alone would have gathered, up
    to rounding. The others answer nothing, and theirs hold anything, before and after. What fails on one rank
    in the middle of a pass leaves the others waiting: their processes have to end.
    """
    group = backbone.group
    shared = _shared_gradients(group, members)
    segments = _segments(members)
    lora = _lora_pass(segments)
    lengths = [length for member in members for length in member.rows.lengths]
    tokens_T = torch.cat([member.rows.tokens_t for member in members])
    missing = head.floor - len(tokens_T)
    if missing > 0:
        # A sequence of fillers (see `row_floor`), of no adapter.
        lengths.append(missing)
        tokens_T = torch.cat([tokens_T, tokens_T[-1:].expand(missing)])
    wanted = any(member.backward for member in members)
    packing = pack(lengths, tokens_T.device)
    with backbone.running(packing, lora), torch.set_grad_enabled(wanted):
        hidden_PH = backbone.hidden(tokens_T)
        dhidden_PH = torch.zeros_like(hidden_PH)
        results: list[RowsResult] = []
        if group.shard.first:
            runs = _head_runs(head, members, segments)
            run_head(head, runs, hidden_PH.detach(), dhidden_PH)
            results = _results(runs, dhidden_PH)
        # An adapter on the unembedding alone has its gradients already.
        if wanted and hidden_PH.requires_grad:
            group.tell(dhidden_PH)
            hidden_PH.backward(dhidden_PH)  # type: ignore[no-untyped-call]
    lora.finish()
    for part_N in shared:
        group.sum_on_first(part_N)
    return results


def _shared_gradients(group: TensorGroup, members: Sequence[Member]) -> list[Tensor]:
    """What the ranks will have to add up: of each gradient row what lies there of layers, all of it written.

    The first rank's keeps what earlier passes gathered and the others begin at zero; so does what a rank has no
    part in.
    """
    if not group.several:
        return []
    rows = {id(member.gradients): member.gradients for member in members if member.gradients is not None}
    parts = [row.finish()[: row.views.layout.layers_stop] for row in rows.values()]
    if not group.shard.first:
        for part_N in parts:
            part_N.zero_()
    return [part_N for part_N in parts if len(part_N)]


def _head_runs(
    head: OutputHead, members: Sequence[Member], segments: Sequence[LoraSegment | None]
) -> list[HeadRun]:
    runs, start = [], 0
    for member, segment in zip(members, segments, strict=True):
        targets_t = member.rows.targets_t
        if member.filler is not None:
            runs.append(_filler_run(head, member.filler, start, targets_t))
        else:
            runs.append(_head_run(member, segment, start))
        start += len(targets_t)
    return runs


def _head_run(member: Member, segment: LoraSegment | None, start: int) -> HeadRun:
    rows = member.rows
    if rows.loss in WHOLE_SEQUENCE:

        def of_all(logprobs_t: Tensor) -> tuple[Tensor, Tensor]:
            return terms_and_slopes(rows.loss, logprobs_t, rows.inputs, rows.settings)

        return HeadRun(start, segment, rows.targets_t, member.backward, whole=of_all)

    def of_rows(chunk: slice, logprobs_c: Tensor) -> tuple[Tensor, Tensor]:
        return terms_and_slopes(rows.loss, logprobs_c, rows.inputs.rows(chunk), rows.settings)

    return HeadRun(start, segment, rows.targets_t, member.backward, loss=of_rows)


def _filler_run(head: OutputHead, shape: RunShape, start: int, targets_t: Tensor) -> HeadRun:
    """It walks back from as many positions as what it stands for; adapters on the unembedding multiply
    their own rows only, so that it needs none."""

    def slopes(logprobs_c: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        slopes_c = torch.zeros_like(logprobs_c)
        slopes_c[: shape.kept[chunk] if chunk < len(shape.kept) else 0] = 1
        return torch.zeros_like(logprobs_c), slopes_c

    if shape.whole:
        return HeadRun(start, None, targets_t, shape.backward, whole=lambda logprobs_t: slopes(logprobs_t, 0))
    return HeadRun(
        start,
        None,
        targets_t,
        shape.backward,
        loss=lambda rows, logprobs_c: slopes(logprobs_c, rows.start // head.chunk),
    )


def _results(runs: Sequence[HeadRun], dhidden_PH: Tensor) -> list[RowsResult]:
    # One flag per run, all brought to the host together: it waits for the device.
    flags = torch.stack(
        [torch.isfinite(run.logprobs_t).all() & torch.isfinite(run.terms_t).all() for run in runs]
    ).tolist()
    for run, finite in zip(runs, flags, strict=True):
        if not finite:
            # What is NaN here stays NaN on its own rows; zeros keep the way back short of surprises.
            dhidden_PH[run.rows] = 0
    return [
        RowsResult(run.logprobs_t, run.terms_t, finite, tuple(run.kept) if run.backward else ())
        for run, finite in zip(runs, flags, strict=True)
    ]


def _segments(members: Sequence[Member]) -> list[LoraSegment | None]:
    """The rows of each one's adapter; None: it has none."""
    segments: list[LoraSegment | None] = []
    start = 0
    for member in members:
        stop = start + len(member.rows.tokens_t)
        segments.append(
            None
            if member.weights is None
            else LoraSegment(
                start=start,
                stop=stop,
                scale=member.scale,
                weights=member.weights,
                gradients=member.gradients,
            )
        )
        start = stop
    return segments


def _lora_pass(segments: Sequence[LoraSegment | None]) -> LoraPass:
    """On CUDA several adapters are multiplied at once; on a CPU, and one adapter, plainly. A rank may have
    fillers only."""
    present = [segment for segment in segments if segment is not None]
    if len(segments) > 1 and present and present[0].weights.row_N.is_cuda:
        return GroupedPass(present)
    return SegmentedPass(present)
