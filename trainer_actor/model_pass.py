"""One pass over the base model: forward, losses, backward into scratch rows.

Several runs share it, each a piece of some operation, of the same adapter or of different ones. What
backward computes goes to scratch rows, so whoever called decides what of it joins an adapter's
gradients. A run whose losses are not finite takes no part in the backward.

Legend: T = positions of the pass, t = of one run, B = datums. Targets and what is computed of them are
[t], or [t, K] where a position has K of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..bus.messages import LossName
from .backbone import Backbone
from .lora_grouped import GroupedPass
from .lora_pass import LoraPass, LoraSegment, SegmentedPass
from .loss_settings import checked_settings
from .losses import WHOLE_SEQUENCE, LossInputs, terms_and_slopes
from .output import HeadRun, OutputHead, run_head
from .packing import pack
from .passes import PassPart
from .row_views import GradientRow, RowViews


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Whole datums of one operation, as tensors on the device."""

    lengths: list[int]
    tokens_t: Tensor
    targets_t: Tensor
    inputs: LossInputs
    loss: LossName
    settings: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What one run brings into a pass. gradients: None to compute none."""

    rows: Rows
    scale: float
    weights: RowViews
    gradients: GradientRow | None


@dataclass(frozen=True, slots=True)
class RowsResult:
    """logprobs [t] and terms [t] of one `Rows`; finite False: its gradients are not to be used."""

    logprobs_t: Tensor
    terms_t: Tensor
    finite: bool


def rows_of(part: PassPart, device: torch.device) -> Rows:
    """All datums of a part."""

    def floats(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    return Rows(
        lengths=part.lengths.tolist(),
        tokens_t=torch.tensor(part.tokens, device=device),
        targets_t=torch.tensor(part.targets, device=device),
        inputs=LossInputs(
            weights_T=floats(part.weights),
            old_logprobs_T=floats(part.old_logprobs),
            advantages_T=floats(part.advantages),
            ratio_mask_T=floats(part.ratio_mask),
            lengths_B=torch.tensor(part.lengths, device=device),
        ),
        loss=part.loss,
        settings=checked_settings(part.loss, part.loss_config),
    )


def split_rows(rows: Rows, budget: int) -> list[Rows]:
    """Cut into pieces of whole datums of at most `budget` positions; a longer datum is alone."""
    cuts: list[list[int]] = []
    size = budget + 1
    for length in rows.lengths:
        if size + length > budget:
            cuts.append([])
            size = 0
        cuts[-1].append(length)
        size += length
    pieces, position, datum = [], 0, 0
    for cut in cuts:
        mine = slice(position, position + sum(cut))
        inputs = rows.inputs.rows(mine, slice(datum, datum + len(cut)))
        position, datum = mine.stop, datum + len(cut)
        pieces.append(
            replace(
                rows,
                lengths=cut,
                tokens_t=rows.tokens_t[mine],
                targets_t=rows.targets_t[mine],
                inputs=inputs,
            )
        )
    return pieces


def run_members(backbone: Backbone, head: OutputHead, members: Sequence[Member]) -> list[RowsResult]:
    """Run them as one pass. Nothing but their gradient rows changes. Those of one layout stand side by side."""
    lora = _lora_pass(members)
    lengths = [length for member in members for length in member.rows.lengths]
    tokens_T = torch.cat([member.rows.tokens_t for member in members])
    missing = head.floor - len(tokens_T)
    if missing > 0:
        # A sequence of fillers (see `row_floor`), of no adapter.
        lengths.append(missing)
        tokens_T = torch.cat([tokens_T, tokens_T[-1:].expand(missing)])
    wanted = any(member.gradients is not None for member in members)
    packing = pack(lengths, tokens_T.device)
    with backbone.running(packing, lora), torch.set_grad_enabled(wanted):
        hidden_PH = backbone.hidden(tokens_T)
        dhidden_PH = torch.zeros_like(hidden_PH)
        runs = [_head_run(member, segment) for member, segment in zip(members, lora.segments, strict=True)]
        run_head(head, runs, hidden_PH.detach(), dhidden_PH)
        results = _results(runs, dhidden_PH)
        # An adapter on the unembedding alone has its gradients already.
        if wanted and hidden_PH.requires_grad:
            hidden_PH.backward(dhidden_PH)  # type: ignore[no-untyped-call]
    lora.finish()
    return results


def _head_run(member: Member, segment: LoraSegment) -> HeadRun:
    rows = member.rows
    backward = member.gradients is not None
    if rows.loss in WHOLE_SEQUENCE:

        def of_all(logprobs_t: Tensor) -> tuple[Tensor, Tensor]:
            return terms_and_slopes(rows.loss, logprobs_t, rows.inputs, rows.settings)

        return HeadRun(segment=segment, targets_t=rows.targets_t, backward=backward, whole=of_all)

    def of_rows(chunk: slice, logprobs_c: Tensor) -> tuple[Tensor, Tensor]:
        return terms_and_slopes(rows.loss, logprobs_c, rows.inputs.rows(chunk), rows.settings)

    return HeadRun(segment=segment, targets_t=rows.targets_t, backward=backward, loss=of_rows)


def _results(runs: Sequence[HeadRun], dhidden_PH: Tensor) -> list[RowsResult]:
    # One flag per run, all brought to the host together: it waits for the device.
    flags = torch.stack(
        [torch.isfinite(run.logprobs_t).all() & torch.isfinite(run.terms_t).all() for run in runs]
    ).tolist()
    for run, finite in zip(runs, flags, strict=True):
        if not finite:
            # What is NaN here stays NaN on its own rows; zeros keep the way back short of surprises.
            dhidden_PH[run.segment.rows] = 0
    return [RowsResult(run.logprobs_t, run.terms_t, finite) for run, finite in zip(runs, flags, strict=True)]


def _lora_pass(members: Sequence[Member]) -> LoraPass:
    """On CUDA several adapters are multiplied at once; on a CPU, and one adapter, plainly."""
    segments, start = [], 0
    for member in members:
        stop = start + len(member.rows.tokens_t)
        segments.append(
            LoraSegment(
                start=start,
                stop=stop,
                scale=member.scale,
                weights=member.weights,
                gradients=member.gradients,
            )
        )
        start = stop
    if len(segments) > 1 and segments[0].weights.row_N.is_cuda:
        return GroupedPass(segments)
    return SegmentedPass(segments)
