"""One pass over the base model: forward, losses, backward into scratch rows.

Adapters of one pass lie in different slots. What backward adds, it adds to scratch rows, so whoever
called decides which parts of it join an adapter's gradients. A part whose losses are not finite
takes no part in the backward.

Legend: T = positions of the pass, N = elements of a row, B = datums. Targets and what is computed of
them are [T], or [T, K] where a position has K of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .backbone import Backbone
from .bank import Bank
from .lora import GroupedPass, LoraPass, LoraSegment, SegmentedPass
from .loss_settings import checked_settings
from .losses import WHOLE_SEQUENCE, LossInputs, terms_and_slopes
from .output import OutputHead, run_head, run_head_twice
from .packing import pack
from .passes import PassPart
from .row_layout import active_sections, padded_rank
from .row_views import RowViews


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Whole datums of one part, as tensors on the device. gradients: views of the part's scratch
    row, or None to compute no gradients."""

    part: PassPart
    lengths: list[int]
    tokens_T: Tensor
    targets_T: Tensor
    inputs: LossInputs
    settings: Mapping[str, float]
    gradients: RowViews | None


@dataclass(frozen=True, slots=True)
class RowsResult:
    """logprobs [T] and terms [T] of one `Rows`; finite False: its gradients were left out."""

    logprobs_T: Tensor
    terms_T: Tensor
    finite: bool


def rows_of(part: PassPart, device: torch.device, gradients: RowViews | None) -> Rows:
    """All datums of a part; gradients count only if the part wants any."""

    def floats(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    return Rows(
        part=part,
        lengths=part.lengths.tolist(),
        tokens_T=torch.tensor(part.tokens, device=device),
        targets_T=torch.tensor(part.targets, device=device),
        inputs=LossInputs(
            weights_T=floats(part.weights),
            old_logprobs_T=floats(part.old_logprobs),
            advantages_T=floats(part.advantages),
            ratio_mask_T=floats(part.ratio_mask),
            lengths_B=torch.tensor(part.lengths, device=device),
        ),
        settings=checked_settings(part.loss, part.loss_config),
        gradients=gradients if part.backward else None,
    )


def split_rows(rows: Rows, budget: int) -> list[Rows]:
    """Cut into runs of whole datums of at most `budget` positions; a longer datum is alone."""
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
                tokens_T=rows.tokens_T[mine],
                targets_T=rows.targets_T[mine],
                inputs=inputs,
            )
        )
    return pieces


def run_rows(backbone: Backbone, bank: Bank, head: OutputHead, rows: Sequence[Rows]) -> list[RowsResult]:
    """Run them as one pass, in the order of their slots. Nothing but their scratch rows changes."""
    packing = pack([length for each in rows for length in each.lengths], bank.weights.device)
    lora = lora_pass(bank, rows)
    wanted = any(each.gradients is not None for each in rows)
    with backbone.running(packing, lora), torch.set_grad_enabled(wanted):
        hidden_TH = backbone.hidden(torch.cat([each.tokens_T for each in rows]))
        dhidden_TH = torch.zeros_like(hidden_TH)
        results = [
            _run_head(head, segment, each, hidden_TH.detach(), dhidden_TH)
            for segment, each in zip(lora.segments, rows, strict=True)
        ]
        # An adapter on the unembedding alone has its gradients already.
        if wanted and hidden_TH.requires_grad:
            hidden_TH.backward(dhidden_TH)  # type: ignore[no-untyped-call]
    return results


def _run_head(
    head: OutputHead, segment: LoraSegment, rows: Rows, hidden_TH: Tensor, dhidden_TH: Tensor
) -> RowsResult:
    mine = slice(segment.start, segment.stop)
    name, inputs, settings = rows.part.loss, rows.inputs, rows.settings
    hidden_tH = hidden_TH[mine]
    gradient_tH = dhidden_TH[mine] if rows.gradients is not None else None

    def of_rows(chunk: slice, logprobs_C: Tensor) -> tuple[Tensor, Tensor]:
        return terms_and_slopes(name, logprobs_C, inputs.rows(chunk), settings)

    def of_all(logprobs_T: Tensor) -> tuple[Tensor, Tensor]:
        return terms_and_slopes(name, logprobs_T, inputs, settings)

    if name in WHOLE_SEQUENCE:
        logprobs_T, terms_T = run_head_twice(head, segment, hidden_tH, rows.targets_T, of_all, gradient_tH)
    else:
        logprobs_T, terms_T = run_head(head, segment, hidden_tH, rows.targets_T, of_rows, gradient_tH)
    finite = bool(torch.isfinite(logprobs_T).all() & torch.isfinite(terms_T).all())
    if not finite:
        # What is NaN here stays NaN on its own rows; zeros keep the way back short of surprises.
        dhidden_TH[mine] = 0
    return RowsResult(logprobs_T, terms_T, finite)


def lora_pass(bank: Bank, rows: Sequence[Rows]) -> LoraPass:
    """Bind the rows to their slots: plain products for one adapter, grouped ones for several."""
    segments, start = [], 0
    for each in rows:
        lora = each.part.lora
        stop = start + len(each.tokens_T)
        segments.append(
            LoraSegment(
                slot=each.part.slot,
                start=start,
                stop=stop,
                scale=lora.alpha / lora.rank,
                sections=active_sections(lora),
                weights=bank.views.at(each.part.slot, padded_rank(lora.rank)),
                gradients=each.gradients,
            )
        )
        start = stop
    if len(segments) == 1:
        return SegmentedPass(segments)
    return GroupedPass(bank.weights, bank.layout.rank, segments)
