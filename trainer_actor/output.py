"""The last layer, log p of the targets and the losses' way back, in chunks: logits of all positions
never exist together.

Losses are sums of parts that depend on one position's log p each. So a chunk's logits are used for
everything at once, log p, loss and gradient, and none is computed twice; a loss over whole sequences
takes a second walk. Only positions whose log p has a gradient are walked back.

Each run's positions are cut into chunks by themselves, and chunks of several runs are multiplied with the
frozen weight together while they fit. So losses and adapters on the unembedding see the same shapes,
and give the same bits, whoever else is in the pass; for the frozen products see `rows_at_least`.

Targets are [t], or [t, K] for several of one position; what is computed per target has their shape.

Legend: P = rows of the pass with fillers, t = of one run, c = of its chunk, C = of chunks together,
D = of those with a derivative, K = targets of a position, H = hidden, V = vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from .linears import Linear
from .lora_pass import LoraSegment, add_product, put_product
from .row_floor import back_through, rows_at_least
from .row_views import SiteViews
from .softmax import normalizers, turn_into_gradient

# Rows of a run and their log p -> parts of the loss, and the loss's derivative in each log p.
Loss = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
# The same for all rows of a run at once.
WholeLoss = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class OutputHead:
    """weight [V, H]: frozen. linear: that of adapters on the unembedding. floor: see `row_floor`.

    logits: memory for those of one chunk, kept: tens of megabytes fresh from the operating system would
    cost a CPU more in page faults than what is computed of them.
    """

    weight_VH: Tensor
    linear: Linear
    chunk: int
    floor: int
    logits_CV: Tensor

    @classmethod
    def of(cls, weight_VH: Tensor, linear: Linear, chunk: int, floor: int) -> Self:
        rows = max(chunk, floor)
        return cls(weight_VH, linear, rows, floor, weight_VH.new_empty(rows, len(weight_VH)))


def _no_loss(_: slice, logprobs_c: Tensor) -> tuple[Tensor, Tensor]:
    nothing_c = torch.zeros_like(logprobs_c)
    return nothing_c, nothing_c


@dataclass(frozen=True, slots=True, eq=False)
class HeadRun:
    """One run's positions, from `start` of the pass on, and their loss; or whole: one that needs all of them
    at once. segment: of its adapter, if it has one.

    logprobs, terms: filled by `run_head`, float32, in the shape of targets. kept: positions that were walked
    back from, of each chunk, or of all where the loss needs whole sequences.
    """

    start: int
    segment: LoraSegment | None
    targets_t: Tensor
    backward: bool
    _: KW_ONLY
    loss: Loss = _no_loss
    whole: WholeLoss | None = None
    logprobs_t: Tensor = field(init=False)
    terms_t: Tensor = field(init=False)
    kept: list[int] = field(init=False, default_factory=list)

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + len(self.targets_t))

    def __post_init__(self) -> None:
        for name in ("logprobs_t", "terms_t"):
            object.__setattr__(self, name, torch.empty_like(self.targets_t, dtype=torch.float32))


@torch.no_grad()
def run_head(head: OutputHead, runs: Sequence[HeadRun], hidden_PH: Tensor, dhidden_PH: Tensor) -> None:
    """log p and parts of the loss of every run.

    dhidden: zeros to be filled with the gradient of hidden, of runs that go back, while their own on
    the unembedding is gathered in their gradient rows.
    """
    for chunks in _side_by_side(runs, head.chunk):
        _Chunks(head, chunks, hidden_PH).run(dhidden_PH)
    again = []
    for run in runs:
        if run.whole is not None:
            terms_t, slopes_t = run.whole(run.logprobs_t)
            run.terms_t.copy_(terms_t)
            if not run.backward:
                continue
            kept_D = slopes_t.nonzero().squeeze(1)
            run.kept[:] = [len(kept_D)]
            if len(kept_D):
                again.append((run, kept_D, terms_t[kept_D], slopes_t[kept_D]))
    if again:
        _walk_back(head, again, hidden_PH, dhidden_PH)


def _walk_back(
    head: OutputHead,
    again: list[tuple[HeadRun, Tensor, Tensor, Tensor]],
    hidden_PH: Tensor,
    dhidden_PH: Tensor,
) -> None:
    """Over positions with a derivative only, which is known by now."""
    runs, start = [], 0
    for run, kept_D, terms_D, slopes_D in again:
        loss = _known(terms_D, slopes_D)
        runs.append(replace(run, start=start, targets_t=run.targets_t[kept_D], loss=loss, whole=None))
        start += len(kept_D)
    rows_D = torch.cat([run.start + kept_D for run, kept_D, _, _ in again])
    hidden_DH = rows_at_least(head.floor, hidden_PH[rows_D])
    dhidden_DH = torch.zeros_like(hidden_DH)
    run_head(head, runs, hidden_DH, dhidden_DH)
    dhidden_PH[rows_D] = dhidden_DH[: len(rows_D)]


def _known(terms_D: Tensor, slopes_D: Tensor) -> Loss:
    return lambda rows, _: (terms_D[rows], slopes_D[rows])


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Positions start:stop of a run."""

    run: HeadRun
    start: int
    stop: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def first(self) -> int:
        """Its first row in the pass."""
        return self.run.start + self.start

    @property
    def last(self) -> int:
        return self.run.start + self.stop

    def adapter(self, linear: Linear) -> tuple[LoraSegment, SiteViews] | None:
        """Whose adapter is on a linear, and its matrices."""
        segment = self.run.segment
        views = segment.weights.at(linear) if segment is not None else None
        return (segment, views) if segment is not None and views is not None else None


def _side_by_side(runs: Sequence[HeadRun], size: int) -> Iterator[list[_Chunk]]:
    """Chunks of at most `size` positions, and neighbours together while they are as few."""
    together: list[_Chunk] = []
    for run in runs:
        for start in range(0, len(run.targets_t), size):
            chunk = _Chunk(run, start, min(start + size, len(run.targets_t)))
            if together and chunk.last - together[0].first > size:
                yield together
                together = []
            together.append(chunk)
    if together:
        yield together


class _Chunks:
    """Some chunks, which are neighbours in the pass, at the output layer."""

    def __init__(self, head: OutputHead, chunks: list[_Chunk], hidden_PH: Tensor) -> None:
        self._head = head
        self._chunks = chunks
        self._first = chunks[0].first
        self._hidden_PH = hidden_PH

    def run(self, dhidden_PH: Tensor) -> None:
        logits_CV = self._logits()
        normalizer_C1 = normalizers(logits_CV)
        slopes: list[Tensor] = []
        for chunk in self._chunks:
            run, mine = chunk.run, self._within(chunk)
            logprobs_c = run.logprobs_t[chunk.rows]
            found_cK = logits_CV[mine].gather(1, _columns(run.targets_t[chunk.rows])).float()
            _columns(logprobs_c).copy_(found_cK - normalizer_C1[mine])
            run.terms_t[chunk.rows], slopes_c = run.loss(chunk.rows, logprobs_c)
            slopes.append(_columns(slopes_c))
        kept = [_kept(chunk.run, slopes_cK) for chunk, slopes_cK in zip(self._chunks, slopes, strict=True)]
        for chunk, each in zip(self._chunks, kept, strict=True):
            chunk.run.kept.append(len(each))
        if any(map(len, kept)):
            self._back(logits_CV, normalizer_C1, slopes, kept, dhidden_PH)

    def _logits(self) -> Tensor:
        """[C, V], in the model's type or, with those of adapters, in float32."""
        last = self._chunks[-1].last
        # Fewer rows than the floor are multiplied with neighbours, whose products are not looked at.
        low = max(0, min(self._first, len(self._hidden_PH) - self._head.floor))
        high = max(last, low + self._head.floor)
        logits_CV = self._head.logits_CV[: high - low]
        torch.mm(self._hidden_PH[low:high], self._head.weight_VH.t(), out=logits_CV)
        logits_CV = logits_CV[self._first - low : last - low]
        for chunk in self._chunks:
            if (found := chunk.adapter(self._head.linear)) is not None:
                segment, adapter = found
                logits_CV = logits_CV.float()
                mid_cR = _mid(self._hidden_PH[chunk.first : chunk.last], adapter, segment.scale)
                add_product(logits_CV[self._within(chunk)], mid_cR, adapter.b_RO[0])
        return logits_CV

    def _back(
        self,
        logits_CV: Tensor,
        normalizer_C1: Tensor,
        slopes: list[Tensor],
        kept: list[Tensor],
        dhidden_PH: Tensor,
    ) -> None:
        rows_D = torch.cat(
            [chunk.first - self._first + each for chunk, each in zip(self._chunks, kept, strict=True)]
        )
        slopes_DK = _side_by_side_columns([of[each] for of, each in zip(slopes, kept, strict=True)])
        targets = [_columns(chunk.run.targets_t[chunk.rows]) for chunk in self._chunks]
        targets_DK = _side_by_side_columns([of[each] for of, each in zip(targets, kept, strict=True)])
        if len(rows_D) < len(logits_CV):
            logits_CV, normalizer_C1 = logits_CV[rows_D], normalizer_C1[rows_D]
        turn_into_gradient(logits_CV, normalizer_C1, targets_DK, slopes_DK)
        dlogits_DV = logits_CV
        # The weight as it lies: with a transposed right side of 49152 rows, oneDNN's bfloat16 product
        # ends the process with a SIGFPE.
        model_DV = rows_at_least(self._head.floor, dlogits_DV.to(dhidden_PH.dtype))
        dhidden_DH = back_through(model_DV, self._head.weight_VH)[: len(rows_D)]
        self._back_adapters(kept, dlogits_DV, dhidden_DH)
        dhidden_PH[self._first + rows_D] = dhidden_DH

    def _back_adapters(self, kept: list[Tensor], dlogits_DV: Tensor, dhidden_DH: Tensor) -> None:
        """Gather the gradients of those on the unembedding, and add what they do to that of hidden."""
        sizes = [len(each) for each in kept]
        for chunk, each, gradient_dV, dhidden_dH in zip(
            self._chunks, kept, torch.split(dlogits_DV, sizes), torch.split(dhidden_DH, sizes), strict=True
        ):
            found = chunk.adapter(self._head.linear)
            if found is None or not len(each):
                continue
            segment, adapter = found
            assert segment.gradients is not None
            into, add = segment.gradients.gather(self._head.linear)
            # Adapters may have another type than the model.
            dlogits_dV = gradient_dV.to(adapter.a_sI.dtype)
            hidden_dH = self._hidden_PH[chunk.first + each].to(adapter.a_sI.dtype)
            dmid_dR = (dlogits_dV @ adapter.b_OR[0]).mul_(segment.scale)
            put_product(into.b_OR[0], dlogits_dV.t(), _mid(hidden_dH, adapter, segment.scale), add=add)
            put_product(into.a_sI, dmid_dR.t(), hidden_dH, add=add)
            dhidden_dH.add_(dmid_dR @ adapter.a_sI)

    def _within(self, chunk: _Chunk) -> slice:
        return slice(chunk.first - self._first, chunk.last - self._first)


def _kept(run: HeadRun, slopes_cK: Tensor) -> Tensor:
    """The positions of a chunk to walk back from."""
    if not run.backward or run.whole is not None:
        return torch.empty(0, dtype=torch.int64, device=slopes_cK.device)
    return slopes_cK.any(dim=1).nonzero().squeeze(1)


def _mid(hidden_cH: Tensor, adapter: SiteViews, scale: float) -> Tensor:
    return (hidden_cH.to(adapter.a_sI.dtype) @ adapter.a_Is).mul_(scale)


def _columns(values_t: Tensor) -> Tensor:
    """A view [t, K] of what is [t] (K is 1) or [t, K]."""
    return values_t if values_t.ndim == 2 else values_t[:, None]


def _side_by_side_columns(parts: list[Tensor]) -> Tensor:
    """Those of several runs as one [D, K], K being the most that one has: others end in zeros."""
    most = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, most - part.shape[1])) for part in parts])
