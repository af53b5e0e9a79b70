"""A trainer that serves, and the daemon's end of its link in the hands of a test.

The engine, the link and the files are real; the ROUTER stands where the broker would, and only
carries. The trainer runs in a thread of the test, or as the process that the supervisor starts.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from loractl.bus import sockets
from loractl.bus.actor_link import ActorLink
from loractl.bus.codec import decode, encode
from loractl.bus.config import Config, load_config, subprocess_environment
from loractl.bus.errors import LoractlError
from loractl.bus.failures import error_of
from loractl.bus.identities import NO_REQUEST, unsolicited
from loractl.bus.ids import LOCAL_TENANT, AdapterId, LaneId, RequestId, TenantId, new_request_id
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    ActorReady,
    AdapterCreated,
    AdapterDetails,
    CreateAdapter,
    Drain,
    Envelope,
    Failed,
    ForwardBackward,
    Heartbeat,
    LaneOpened,
    LoraSpec,
    Message,
    OpenLane,
    OptimStep,
    PassResult,
    SnapshotTaken,
    StepResult,
    Waiting,
)
from loractl.tests.trainer_actor.loop.random_model import VOCAB
from loractl.trainer_actor.actor import TrainerActor
from loractl.trainer_actor.engine import TrainEngine

Reply = TypeVar("Reply", bound=Message)

WAIT_S = 120.0


def make_config(state_dir: Path, model: Path, *overrides: str) -> Config:
    base = [
        f"model.path={model}",
        "model.name=tiny",
        "model.device=cpu",
        "model.max_sequence_tokens=64",
        "trainer.slots=2",
        "trainer.max_rank=8",
        "trainer.threads=1",
        "daemon.heartbeat_s=0.5",
        # No test depends on how much a slow machine writes before it is told to hurry.
        "daemon.stop_timeout_s=60",
    ]
    return load_config(state_dir=str(state_dir), environ={}, overrides=[*base, *overrides])


class Office:
    """The broker's end: sends what a test says, keeps every answer until it is asked for."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.layout = StateLayout(Path(config.state_dir))
        self.layout.run.mkdir(parents=True, exist_ok=True)
        self._context = sockets.new_context()
        self._router = sockets.bind_router(
            self._context, self.layout.actor_socket, config.limits, handover=True
        )
        self._answers: list[Envelope] = []
        self.notices: dict[RequestId, list[str]] = {}
        self.arrived: list[RequestId] = []
        self.reports: list[Message] = []

    def send(
        self, body: Message, tenant: TenantId = LOCAL_TENANT, request: RequestId | None = None
    ) -> RequestId:
        """request: its id, to send one again."""
        envelope = Envelope(request=request or new_request_id(), tenant=tenant, body=body)
        self._router.send_multipart([b"trainer", *encode(envelope)])
        return envelope.request

    def tell(self, body: Message) -> None:
        self._router.send_multipart([b"trainer", *encode(unsolicited(body))])

    def wait(self, request: RequestId) -> Message:
        """The answer to a request, which must be its only one."""
        self._until(lambda: any(answer.request == request for answer in self._answers))
        [answer] = [answer for answer in self._answers if answer.request == request]
        self._answers.remove(answer)
        return answer.body

    def wait_for_notice(self, request: RequestId) -> str:
        """Why the trainer says that a request waits: what it said last."""
        self._until(lambda: request in self.notices)
        return self.notices[request][-1]

    def wait_for_report(self, kind: type[Reply]) -> Reply:
        self._until(lambda: any(isinstance(report, kind) for report in self.reports))
        report = next(report for report in self.reports if isinstance(report, kind))
        self.reports.remove(report)
        return report

    def ask(self, body: Message, kind: type[Reply], tenant: TenantId = LOCAL_TENANT) -> Reply:
        """Send and wait. Raises what the trainer answered, if that is an error."""
        return checked(self.wait(self.send(body, tenant)), kind)

    def refused(self, body: Message, tenant: TenantId = LOCAL_TENANT) -> LoractlError:
        answer = self.wait(self.send(body, tenant))
        assert isinstance(answer, Failed), answer
        return error_of(answer)

    def close(self) -> None:
        sockets.close(self._context, self._router)

    def _until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not done():
            assert self._router.poll(max(0, int((deadline - time.monotonic()) * 1000))), "no answer came"
            for identity, *frames in sockets.receive_waiting(self._router):
                self._take(bytes(identity), decode(frames, self.config.limits))

    def _take(self, identity: bytes, envelope: Envelope) -> None:
        if isinstance(envelope.body, Waiting):
            assert not envelope.last
            self.notices.setdefault(envelope.request, []).append(envelope.body.reason)
        elif envelope.request != NO_REQUEST:
            self._answers.append(envelope)
            self.arrived.append(envelope.request)
        elif not isinstance(envelope.body, Heartbeat):
            # What one said last may be read when another has its place, and its name.
            assert identity == b"trainer" or isinstance(envelope.body, SnapshotTaken)
            self.reports.append(envelope.body)


def checked(answer: Message, kind: type[Reply]) -> Reply:
    if isinstance(answer, Failed):
        raise error_of(answer)
    assert isinstance(answer, kind), answer
    return answer


@dataclass
class Adapter:
    """A client's end of one adapter: numbers its operations, waits for one at a time."""

    office: Office
    details: AdapterDetails
    lane: LaneId
    seq: int = 0
    results: list[np.ndarray] = field(default_factory=list)

    @property
    def id(self) -> AdapterId:
        return self.details.adapter

    @property
    def tenant(self) -> TenantId:
        return self.details.tenant

    def next(self) -> dict[str, object]:
        """adapter, lane and the next sequence number, for any operation."""
        self.seq += 1
        return {"adapter": self.id, "lane": self.lane, "seq": self.seq}

    def forward_backward(self, data: int, **changes: object) -> PassResult:
        result = self.office.ask(pass_over(data, **self.next(), **changes), PassResult, self.tenant)
        self.results.append(result.logprobs)
        return result

    def step(self, rate: float = 0.05, **changes: object) -> StepResult:
        step = OptimStep(learning_rate=rate, **self.next(), **changes)  # type: ignore[arg-type]
        return self.office.ask(step, StepResult, self.tenant)

    def run(self, operation: type[Message], kind: type[Reply], **fields: object) -> Reply:
        return self.office.ask(operation(**self.next(), **fields), kind, self.tenant)

    def refused(self, operation: Callable[..., Message], **fields: object) -> LoractlError:
        return self.office.refused(operation(**self.next(), **fields), self.tenant)

    def reopen(self) -> None:
        """Open a new lane, as after a restart."""
        opened = self.office.ask(OpenLane(adapter=self.id), LaneOpened, self.tenant)
        self.lane, self.details, self.seq = opened.lane, opened.details, 0


def create(
    office: Office, name: str, *, rank: int = 4, tenant: TenantId = LOCAL_TENANT, **lora: object
) -> Adapter:
    spec = LoraSpec(rank=rank, **{"alpha": 2.0 * rank, "seed": rank, **lora})  # type: ignore[arg-type]
    created = office.ask(CreateAdapter(name=name, lora=spec), AdapterCreated, tenant)
    return Adapter(office, created.details, created.lane)


def pass_over(data: int, **fields: object) -> ForwardBackward:
    """Cross entropy over two datums that `data` decides."""
    random = np.random.default_rng(data)
    lengths = np.array([7, 5])
    tokens = random.integers(0, VOCAB, 13)
    empty = np.zeros(0, np.float32)
    plain = {
        "lengths": lengths,
        "tokens": tokens[:-1],
        "targets": tokens[1:],
        "weights": random.random(12).astype(np.float32),
        "old_logprobs": empty,
        "advantages": empty,
        "loss": "cross_entropy",
    }
    return ForwardBackward(**{**plain, **fields})  # type: ignore[arg-type]


class Trainer:
    """A trainer in a thread of the test. `status` is what its process would exit with."""

    def __init__(self, config: Config, engine: type[TrainEngine] = TrainEngine) -> None:
        self.status: int | None = None
        self._config = config
        self._engine = engine
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def join(self) -> int:
        self._thread.join(WAIT_S)
        assert self.status is not None, "the trainer did not end"
        return self.status

    def _serve(self) -> None:
        with ActorLink(self._config, "trainer", "trainer", on_orphaned=lambda: None) as link:
            engine = self._engine.build(self._config)
            self.status = TrainerActor.build(self._config, link, engine).run()


def start(office: Office, engine: type[TrainEngine] = TrainEngine) -> tuple[Trainer, ActorReady]:
    trainer = Trainer(office.config, engine)
    return trainer, office.wait_for_report(ActorReady)


def stop(office: Office, trainer: Trainer) -> None:
    office.tell(Drain())
    assert trainer.join() == 0


def start_process(office: Office) -> "subprocess.Popen[bytes]":
    """The trainer as the supervisor starts it."""
    office.layout.config.write_text(office.config.to_json())
    command = [sys.executable, "-m", "loractl.trainer_actor", "--config", str(office.layout.config)]
    root = Path(__file__).resolve().parents[3]
    environment = subprocess_environment({"PYTHONPATH": str(root / ".pkg"), "OMP_NUM_THREADS": "1"})
    with said_file(office).open("ab") as said:
        return subprocess.Popen(
            [*command, "--actor", "trainer"], env=environment, start_new_session=True, stderr=said
        )


def said_file(office: Office) -> Path:
    """What the trainer's process wrote to stderr."""
    return office.layout.root / "said.txt"


def same(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> bool:
    """Bit for bit."""
    return len(first) == len(second) and all(
        a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True)
    )
