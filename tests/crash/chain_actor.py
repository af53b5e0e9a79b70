"""A trainer without a model: what an adapter did is a chain of digests, and every answer tells its link.

Nothing can be lost, doubled or swapped without changing all answers after it. It starts in a moment, takes a
snapshot behind every few operations, and goes back to one, as the real one does.

`python chain_actor.py --config FILE --actor NAME`
"""

import argparse
import hashlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from loractl.bus.actor_link import ActorLink
from loractl.bus.config import config_from_json
from loractl.bus.crash_points import crash_point
from loractl.bus.errors import AdapterNotFound, CheckpointMismatch, LoractlError, SequenceConflict
from loractl.bus.failures import failed
from loractl.bus.heartbeat import end_own_group
from loractl.bus.ids import AdapterId, LaneId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    AdapterCreated,
    CreateAdapter,
    DeleteAdapter,
    Done,
    Drain,
    Envelope,
    ForwardBackward,
    LaneOpened,
    LanePosition,
    Message,
    OpenLane,
    OptimStep,
    PassResult,
    RecoverAdapter,
    Recovered,
    RefuseOperation,
    SkipOperation,
    SnapshotTaken,
    StepResult,
)
from loractl.tests.daemon.office import details_of

_SNAPSHOT_EVERY = 5
_Operation = ForwardBackward | OptimStep | SkipOperation | RefuseOperation


class _Saved(msgspec.Struct):
    link: str
    step: int
    next_seqs: dict[str, int]


@dataclass
class _Adapter:
    """link: the chain's newest. next_seqs: by lane. waiting: what came before its turn, by lane and number."""

    link: str = ""
    step: int = 0
    ran: int = 0
    next_seqs: dict[str, int] = field(default_factory=dict)
    waiting: dict[tuple[str, int], Envelope] = field(default_factory=dict)


class Chains:
    def __init__(self, link: ActorLink, actor: str, layout: StateLayout) -> None:
        self._link = link
        self._actor = actor
        self._layout = layout
        self._live: dict[str, _Adapter] = {}

    def take(self, envelope: Envelope) -> None:
        try:
            body = envelope.body
            if isinstance(body, ForwardBackward | OptimStep | SkipOperation | RefuseOperation):
                self._in_order(envelope, body)
            else:
                self._reply(envelope, self._at_once(body))
        except LoractlError as error:
            self._reply(envelope, failed(error))

    def _at_once(self, body: Message) -> Message:
        match body:
            case CreateAdapter(adapter=adapter, lane=lane):
                self._layout.adapter(adapter).mkdir(parents=True, exist_ok=True)
                created = self._live.setdefault(adapter, _Adapter())
                created.next_seqs.setdefault(lane, 1)
                return AdapterCreated(details=details_of(adapter), lane=lane)
            case OpenLane(adapter=adapter, lane=lane):
                self._adapter(adapter).next_seqs.setdefault(lane, 1)
                return LaneOpened(details=details_of(adapter), lane=lane)
            case RecoverAdapter():
                return self._recovered(body)
            case DeleteAdapter(adapter=adapter):
                self._adapter(adapter)
                self._layout.adapter(adapter).rename(self._layout.adapters / f".gone-{adapter}")
                del self._live[adapter]
                return Done()
            case _:
                return Done()

    def _recovered(self, wanted: RecoverAdapter) -> Recovered:
        directory = self._layout.adapter(wanted.adapter)
        if not directory.is_dir():
            raise AdapterNotFound("there is none")
        adapter = _Adapter()
        if wanted.snapshot:
            try:
                saved = msgspec.json.decode((directory / wanted.snapshot).read_bytes(), type=_Saved)
            except (FileNotFoundError, msgspec.DecodeError) as error:
                raise CheckpointMismatch("it is damaged") from error
            adapter.link, adapter.step = saved.link, saved.step
        adapter.next_seqs = {each.lane: each.next_seq for each in wanted.lanes}
        self._live[wanted.adapter] = adapter
        return Recovered(step=adapter.step)

    def _in_order(self, envelope: Envelope, body: _Operation) -> None:
        adapter = self._adapter(body.adapter)
        if body.seq < adapter.next_seqs[body.lane]:
            raise SequenceConflict(f"number {body.seq} came twice")
        adapter.waiting[body.lane, body.seq] = envelope
        while (queued := adapter.waiting.pop((body.lane, adapter.next_seqs[body.lane]), None)) is not None:
            adapter.next_seqs[body.lane] += 1
            self._reply(queued, self._run(adapter, queued))
            self._after(body.adapter, adapter)

    def _run(self, adapter: _Adapter, queued: Envelope) -> Message:
        body = queued.body
        if isinstance(body, SkipOperation):
            return Done()
        if isinstance(body, RefuseOperation):
            return failed(SequenceConflict(body.message))
        said = adapter.link.encode() + f"{body.kind} {body.seq} ".encode()
        if isinstance(body, ForwardBackward):
            said += body.tokens.tobytes()
        adapter.link = hashlib.sha256(said).hexdigest()
        told = np.frombuffer(bytes.fromhex(adapter.link), dtype=np.uint8).astype(np.float32)
        if isinstance(body, OptimStep):
            adapter.step += 1
            return StepResult(
                applied=True, step=adapter.step, grad_norm=float(told.sum()), learning_rate=0.1, tokens=1
            )
        return PassResult(logprobs=told, loss_terms=told, metrics={"loss:sum": float(told[0])})

    def _after(self, wanted: AdapterId, adapter: _Adapter) -> None:
        """A snapshot now and then: aside, then renamed, then told."""
        adapter.ran += 1
        if adapter.ran % _SNAPSHOT_EVERY:
            return
        directory = self._layout.adapter(wanted)
        name = f"snapshot-{len([*directory.iterdir()])}"
        aside = directory / f".{name}"
        aside.write_bytes(msgspec.json.encode(_Saved(adapter.link, adapter.step, adapter.next_seqs)))
        crash_point("file.written")
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        crash_point("file.synced")
        aside.rename(directory / name)
        crash_point("file.renamed")
        lanes = tuple(
            LanePosition(lane=LaneId(lane), next_seq=seq) for lane, seq in adapter.next_seqs.items()
        )
        self._link.report(
            SnapshotTaken(
                actor=self._actor, adapter=wanted, snapshot=name, lanes=lanes, step=adapter.step, digest=""
            )
        )
        crash_point("snapshot.reported")

    def _adapter(self, adapter: AdapterId) -> _Adapter:
        if adapter not in self._live:
            raise AdapterNotFound("there is none")
        return self._live[adapter]

    def _reply(self, envelope: Envelope, body: Message) -> None:
        self._link.reply(envelope, body)
        crash_point("trainer.replied")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path)
    parser.add_argument("--actor")
    given = parser.parse_args()
    config = config_from_json(given.config.read_text())
    with ActorLink(config, given.actor, "trainer", on_orphaned=end_own_group) as link:
        chains = Chains(link, given.actor, StateLayout(Path(config.state_dir)))
        link.ready("chains")
        while True:
            for envelope in link.receive(0.5):
                if isinstance(envelope.body, Drain):
                    return 0
                chains.take(envelope)


if __name__ == "__main__":
    sys.exit(main())
