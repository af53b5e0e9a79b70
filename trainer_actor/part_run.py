"""One operation's way through its passes: cut into pieces, gathered in a scratch row, settled at the end.

All or nothing: until the last piece has run and everything is finite, the adapter's row is as it was.

Legend: t = positions, N = elements of a row.
"""

import math

import torch

from ..bus.errors import LoractlError, NotFinite
from .bank import Row
from .compositions import PassShape, Seat, composition
from .loss_metrics import loss_metrics
from .losses import WHOLE_SEQUENCE
from .members import Member, cut, rows_of, split_rows
from .model_pass import RowsResult
from .passes import PartOutcome, PartResult, PassPart
from .row_memory import RowMemory
from .row_views import GradientRow


class PartRun:
    """pieces: positions of each. outcome: None until all have run, or it failed.

    alone: the device had no room for it beside others, so it has passes of its own.
    whole: its loss needs whole sequences.
    """

    def __init__(self, part: PassPart, row: Row, memory: RowMemory, pass_tokens: int) -> None:
        self.part = part
        self.outcome: PartOutcome | None = None
        self.alone = False
        self._row = row
        self._memory = memory
        self._rows = rows_of(part, memory.device)
        counts = [len(seat.mine.lengths) for seat in part.seats] or cut(self._rows.lengths, pass_tokens)
        self._cut = split_rows(self._rows, counts)
        self.whole = part.loss in WHOLE_SEQUENCE
        self.pieces = tuple(len(piece.tokens_t) for piece in self._cut)
        self._results: list[RowsResult] = []
        self._seats: list[bytes] = []
        self._scratch: GradientRow | None = None

    @property
    def left(self) -> int:
        """Pieces that have not run yet."""
        return len(self.pieces) - len(self._results) if self.outcome is None else 0

    @property
    def layout_number(self) -> int:
        """Equal for adapters of one geometry."""
        return self._row.layout.number

    @property
    def seat(self) -> Seat | None:
        """Where the next piece runs again; None: it runs as it comes."""
        seats = self.part.seats
        return seats[len(self._results)] if seats and not self.alone and self.left else None

    @property
    def shape(self) -> PassShape | None:
        """The pass in which the next piece runs again."""
        return self.seat.shape if self.seat is not None else None

    def member(self) -> Member:
        """The next piece. Raises torch.OutOfMemoryError."""
        if self.part.backward and self._scratch is None:
            self._scratch = GradientRow(self._memory.take(self._row.layout, torch.float32))
        return Member(
            rows=self._cut[len(self._results)],
            scale=self._row.lora.alpha / self._row.lora.rank,
            weights=self._row.views,
            gradients=self._scratch,
        )

    def ran(self, result: RowsResult, seat: bytes | None) -> None:
        """seat: to be noted, packed; None: what else was in the pass changes nothing."""
        self._results.append(result)
        if seat is not None:
            self._seats.append(seat)
        if not result.finite:
            self.fail(NotFinite("the loss is NaN or infinite; the adapter is as it was before"))
        elif not self.left:
            self._settle()

    def restart(self) -> None:
        """From the first piece: a pass broke off, and nobody knows how far it wrote."""
        self._forget()
        self.alone = True

    def fail(self, error: LoractlError) -> None:
        self._forget()
        self.outcome = error

    def abandon(self) -> None:
        """Nobody asks for the outcome; the adapter is as it was before."""
        self._forget()

    def _settle(self) -> None:
        """Let the gradients join the adapter's, all or none of them."""
        logprobs_t = torch.cat([result.logprobs_t for result in self._results])
        terms_t = torch.cat([result.terms_t for result in self._results])
        rows = self._rows
        metrics = loss_metrics(rows.loss, logprobs_t, terms_t, rows.inputs, rows.settings)
        if not all(math.isfinite(value) for value in metrics.values()):
            self.fail(NotFinite("the summed loss is NaN or infinite; the adapter is as it was before"))
            return
        if self._scratch is not None:
            gradients_N = self._scratch.finish()
            # A sum is NaN or infinite if any of its terms is, and reads everything once.
            if not bool(torch.isfinite(gradients_N.sum())):
                self.fail(NotFinite("a gradient is NaN or infinite; the adapter is as it was before"))
                return
            self._row.join(self._scratch.views, tokens=len(self.part.tokens))
            self._scratch = None
        self.outcome = PartResult(
            logprobs=logprobs_t.cpu().numpy(),
            loss_terms=terms_t.cpu().numpy(),
            metrics=metrics,
            composition=composition(self._seats),
        )

    def _forget(self) -> None:
        self._results.clear()
        self._seats.clear()
        if self._scratch is not None:
            self._memory.give(self._scratch.views)
            self._scratch = None
