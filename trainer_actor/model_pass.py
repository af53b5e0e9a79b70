"""One pass over the base model: forward, losses, backward into scratch rows.

Adapters of one pass lie in different slots. What backward adds, it adds to scratch rows, so whoever
called decides which parts of it join an adapter's gradients. A part whose losses are not finite
takes no part in the backward.

Legend: T = positions of the pass, N = elements of a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .backbone import Backbone
from .bank import Bank
from .lora import GroupedPass, LoraPass, LoraSegment, SegmentedPass
from .losses import LossInputs, checked_settings, loss_terms
from .output import OutputHead, token_logprobs
from .packing import pack
from .passes import PassPart
from .row_layout import active_sections, padded_rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Whole datums of one part, as tensors on the device. gradients [N]: the part's scratch row, or
    None to compute no gradients."""

    part: PassPart
    lengths: list[int]
    tokens_T: Tensor
    targets_T: Tensor
    inputs: LossInputs
    settings: Mapping[str, float]
    gradients: Tensor | None


@dataclass(frozen=True, slots=True)
class RowsResult:
    """logprobs [T] and terms [T] of one `Rows`; finite False: its gradients were left out."""

    logprobs_T: Tensor
    terms_T: Tensor
    finite: bool


def rows_of(part: PassPart, device: torch.device, gradients: Tensor | None) -> Rows:
    """All datums of a part."""

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
        ),
        settings=checked_settings(part.loss, part.loss_config),
        gradients=gradients,
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
    spans = [sum(cut) for cut in cuts]

    def pieces(values_T: Tensor) -> Sequence[Tensor]:
        return torch.split(values_T, spans) if len(values_T) else [values_T] * len(spans)

    weights, old, advantages = (
        pieces(each) for each in (rows.inputs.weights_T, rows.inputs.old_logprobs_T, rows.inputs.advantages_T)
    )
    return [
        Rows(
            part=rows.part,
            lengths=cut,
            tokens_T=tokens_T,
            targets_T=targets_T,
            inputs=LossInputs(weights_T=w, old_logprobs_T=o, advantages_T=a),
            settings=rows.settings,
            gradients=rows.gradients,
        )
        for cut, tokens_T, targets_T, w, o, a in zip(
            cuts, pieces(rows.tokens_T), pieces(rows.targets_T), weights, old, advantages, strict=True
        )
    ]


def run_rows(backbone: Backbone, bank: Bank, head: OutputHead, rows: Sequence[Rows]) -> list[RowsResult]:
    """Run them as one pass, in the order of their slots. Nothing but their scratch rows changes."""
    packing = pack([length for each in rows for length in each.lengths], bank.weights.device)
    lora = lora_pass(bank, rows)
    wanted = any(each.gradients is not None for each in rows)
    with backbone.frame.running(packing, lora), torch.set_grad_enabled(wanted):
        hidden_TH = backbone.hidden(torch.cat([each.tokens_T for each in rows]))
        logprobs_T = token_logprobs(hidden_TH, torch.cat([each.targets_T for each in rows]), head, lora)
        spans = [len(each.tokens_T) for each in rows]
        results, losses = [], []
        for each, lp_T in zip(rows, torch.split(logprobs_T, spans), strict=True):
            terms_T = loss_terms(each.part.loss, lp_T, each.inputs, each.settings)
            finite = bool(torch.isfinite(lp_T).all() & torch.isfinite(terms_T).all())
            results.append(RowsResult(lp_T.detach(), terms_T.detach(), finite))
            if finite and each.gradients is not None:
                losses.append(terms_T.sum())
        if losses:
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    return results


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
                width=padded_rank(lora.rank),
                scale=lora.alpha / lora.rank,
                sections=active_sections(lora),
                gradients=each.gradients,
            )
        )
        start = stop
    kind = SegmentedPass if len(segments) == 1 else GroupedPass
    return kind(bank.layout, bank.weights, segments)
