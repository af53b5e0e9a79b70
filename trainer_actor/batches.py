"""What runs together: forward_backwards of many adapters in one pass, their optim_steps in one batch.

Each is all or nothing and fails alone: what it is answered with as an error left its adapter as it was.
An optim_step behind a forward_backward that failed applies what the others of its window gathered; if
there was nothing, it is an exact no-op (`applied` False). Which ones run together is `plan`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import structlog

from ..bus.errors import InvalidData, LoractlError
from ..bus.failures import failed
from ..bus.ids import AdapterId, LaneId, TenantId
from ..bus.messages import ForwardBackward, Message, OptimStep, PassResult, StepResult
from .adapter import Adapter
from .adapters import Adapters
from .compositions import checked_seats, seats
from .engine import TrainEngine
from .part_run import PartRun
from .passes import AdamParams, PassPart, StepOutcome
from .windows import Event

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Begun:
    """A forward_backward some of whose pieces may have run."""

    adapter: Adapter
    part: PassPart
    run: PartRun


class Batches:
    def __init__(self, engine: TrainEngine, adapters: Adapters) -> None:
        self._engine = engine
        self._adapters = adapters
        self._residents = adapters.residents
        self._begun: dict[tuple[LaneId, int], Begun] = {}

    def checked(self, operation: ForwardBackward) -> ForwardBackward:
        """Without a composition that it cannot have run in: it then runs in whatever passes there are."""
        most = max(self._engine.pass_tokens, self._engine.details.max_sequence_tokens)
        try:
            checked_seats(operation, most)
        except InvalidData as error:
            log.warning("composition.ignored", adapter=operation.adapter, reason=error.message)
            return replace(operation, composition=np.zeros(0, dtype=np.uint8))
        return operation

    def begin(self, tenant: TenantId, operation: ForwardBackward) -> None:
        """Check a forward_backward and make it ready for its first pass; its adapter is pinned until it ends.

        Raises:
            LoractlError: it changed nothing, and nothing is left of it.
        """
        adapter = self._adapters.owned(tenant, operation.adapter)
        self._adapters.take_up(adapter)
        part = self._part(adapter, operation)
        self._engine.check_part(part)
        self._residents.pin(adapter.id)
        try:
            self._begun[operation.lane, operation.seq] = Begun(adapter, part, self._engine.begin(part))
        except BaseException:
            self._residents.unpin(adapter.id)
            raise

    def has_begun(self, operation: ForwardBackward) -> bool:
        return (operation.lane, operation.seq) in self._begun

    def pieces_ran(self, operation: ForwardBackward) -> int:
        """How many pieces of an operation that has begun have run. Fewer than before, where memory ran out
        and it begins anew."""
        run = self._begun[operation.lane, operation.seq].run
        return len(run.pieces) - run.left

    def run_pass(self, operations: Sequence[ForwardBackward]) -> list[Message | None]:
        """Run the next piece of operations that have begun as one pass over the base model.

        Each gets its own reply once its last piece has run, or one has failed: it fails alone.
        """
        begun = [self._begun[operation.lane, operation.seq] for operation in operations]
        self._engine.run([each.run for each in begun])
        return [self._ended(operation, each) for operation, each in zip(operations, begun, strict=True)]

    def abandon(self, adapter: AdapterId) -> None:
        """Let go of what has begun of an adapter; it leaves no trace."""
        for key, begun in list(self._begun.items()):
            if begun.adapter.id == adapter:
                self._engine.abandon(begun.run)
                self._residents.unpin(adapter)
                del self._begun[key]

    def run_steps(self, steps: Sequence[tuple[TenantId, OptimStep]]) -> list[Message]:
        """Run optim_steps of different adapters, which lie on the device together if they can. Each fails alone."""
        found = [self._adapters.owned(tenant, step.adapter) for tenant, step in steps]
        try:
            slots = self._residents.place_all([adapter.id for adapter in found])
        except LoractlError as error:
            if len(steps) == 1:
                return [_stepped(found[0], steps[0][1], error)]
            return [answer for step in steps for answer in self.run_steps([step])]
        params = [_adam_params(step) for _, step in steps]
        outcomes = self._engine.optim_steps(list(zip(slots, params, strict=True)))
        return [
            _stepped(adapter, step, outcome)
            for adapter, (_, step), outcome in zip(found, steps, outcomes, strict=True)
        ]

    def _ended(self, operation: ForwardBackward, begun: "Begun") -> Message | None:
        """The reply to an operation whose last piece has run, and what it did to its adapter's window."""
        outcome = begun.run.outcome
        if outcome is None:
            return None
        del self._begun[operation.lane, operation.seq]
        self._residents.unpin(begun.adapter.id)
        if isinstance(outcome, LoractlError):
            begun.adapter.happened(Event.FAILED, lane=operation.lane)
            return failed(outcome)
        begun.adapter.happened(Event.GATHERED if begun.part.backward else Event.SCORED, lane=operation.lane)
        return PassResult(
            logprobs=outcome.logprobs,
            loss_terms=outcome.loss_terms,
            metrics=outcome.metrics,
            composition=outcome.composition,
        )

    def _part(self, adapter: Adapter, operation: ForwardBackward) -> PassPart:
        return PassPart(
            slot=self._residents.place(adapter.id),
            lora=adapter.lora,
            lengths=operation.lengths,
            tokens=operation.tokens,
            targets=operation.targets,
            weights=operation.weights,
            old_logprobs=operation.old_logprobs,
            advantages=operation.advantages,
            loss=operation.loss,
            loss_config=operation.loss_config,
            backward=not operation.forward_only,
            ratio_mask=operation.ratio_mask,
            seats=seats(operation.composition),
        )


def _adam_params(operation: OptimStep) -> AdamParams:
    return AdamParams(
        learning_rate=operation.learning_rate,
        beta1=operation.beta1,
        beta2=operation.beta2,
        eps=operation.eps,
        weight_decay=operation.weight_decay,
        grad_clip_norm=operation.grad_clip_norm,
    )


def _stepped(adapter: Adapter, operation: OptimStep, outcome: StepOutcome | LoractlError) -> Message:
    """The reply to an optim_step that ran, and what it did to its adapter's window."""
    if isinstance(outcome, LoractlError):
        adapter.happened(Event.FAILED, lane=operation.lane)
        return failed(outcome)
    if outcome.applied:
        adapter.happened(Event.COMMITTED, step=outcome.step)
    else:
        adapter.happened(Event.STEPPED_ON_NOTHING)
    return StepResult(
        applied=outcome.applied,
        step=outcome.step,
        grad_norm=outcome.grad_norm,
        learning_rate=operation.learning_rate,
        tokens=outcome.tokens,
    )
