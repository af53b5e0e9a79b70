"""Killed exactly where something is about to become durable, or has just been told: nothing is lost or doubled.

The trainer here is `chain_actor`, whose every answer tells all that the adapter ever did. `test_real_crash_points`
has the trainer itself, and the bridge.
"""

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from loractl.bus.client import Client
from loractl.bus.codec import encode
from loractl.bus.config import CRASH_AT, Config
from loractl.bus.errors import DaemonGone, DaemonNotRunning
from loractl.bus.ids import LOCAL_TENANT, AdapterId, LaneId, RequestId
from loractl.bus.messages import (
    AdapterCreated,
    CreateAdapter,
    DeleteAdapter,
    Done,
    Envelope,
    Message,
    OptimStep,
    PassResult,
    StepResult,
)
from loractl.tests.crash.killer import POINTS
from loractl.tests.crash.points import REAL, STAND_IN
from loractl.tests.daemon.conftest import settings_for, short_lived_directory
from loractl.tests.daemon.office import LORA, forward_backward
from loractl.tests.daemon.real_daemon import PATIENCE_S, RealDaemon

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("bus", "daemon", "trainer_actor", "sampler_actor", "tinker_bridge", "client")
WINDOWS = 12


@dataclass
class Session:
    """A client that asks for all again, under the same ids, until it has been answered."""

    config: Config
    daemon: RealDaemon
    starts: int = 1
    sent: dict[str, Message] = field(default_factory=dict)
    answers: dict[str, Message] = field(default_factory=dict)

    @property
    def deaths(self) -> int:
        """Of the daemon, and of its trainer while it lived."""
        log = (self.daemon.layout.logs / "daemon.log").read_text()
        return self.starts - 1 + log.count('"event": "actor.died"')

    def run(self) -> None:
        created = {name: CreateAdapter(name=name, lora=LORA) for name in ("a", "b")}
        self.ask({f"create-{name}": body for name, body in created.items()})
        places = {}
        for name in created:
            answer = self.answers[f"create-{name}"]
            assert isinstance(answer, AdapterCreated)
            places[name] = (answer.details.adapter, answer.lane)
        for first in range(0, WINDOWS, 3):
            windows = range(first, first + 3)
            self.ask(
                {key: body for name, place in places.items() for key, body in work(name, *place, windows)}
            )
        self.ask({"delete-b": DeleteAdapter(adapter=places["b"][0])})

    def ask(self, requests: Mapping[str, Message]) -> dict[str, Message]:
        """Returns what was answered this time; the first answers stay in `answers`."""
        self.sent.update(requests)
        heard: dict[str, Message] = {}
        while len(heard) < len(requests):
            # Gone: it comes back, and is asked for what was not heard.
            with contextlib.suppress(DaemonGone, DaemonNotRunning), Client(self.config) as client:
                left = {key: body for key, body in requests.items() if key not in heard}
                asked = {key: client.submit(body, request=RequestId(key)) for key, body in left.items()}
                for key, pending in asked.items():
                    heard[key] = pending.result(PATIENCE_S)
            if self.daemon.process.poll() is not None:
                self.restart()
        for key, answer in heard.items():
            self.answers.setdefault(key, answer)
        return heard

    def restart(self) -> None:
        self.daemon.close()
        self.starts += 1
        self.daemon = start(self.config)


def start(config: Config, crash_at: str = "") -> RealDaemon:
    command = [sys.executable, str(Path(__file__).with_name("chain_actor.py"))]
    run_config = str(Path(config.state_dir) / "run" / "config.json")
    argv = [*command, "--config", run_config, "--actor", "trainer"]
    return RealDaemon(config, {"trainer": ("trainer", argv)}, {CRASH_AT: crash_at})


def work(name: str, adapter: AdapterId, lane: LaneId, windows: range) -> Iterator[tuple[str, Message]]:
    for window in windows:
        seq = 2 * window + 1
        yield f"{name}-pass-{window}", forward_backward(seq, positions=window + 2, lane=lane, adapter=adapter)
        yield f"{name}-step-{window}", OptimStep(adapter=adapter, lane=lane, seq=seq + 1, learning_rate=0.1)


def links(answers: Mapping[str, Message]) -> dict[str, object]:
    """What of the answers does not depend on ids, which are others in every session."""
    said: dict[str, object] = {}
    for key, answer in answers.items():
        match answer:
            case PassResult(logprobs=logprobs):
                said[key] = logprobs.tobytes()
            case StepResult() | Done():
                said[key] = answer
            case AdapterCreated():
                said[key] = "created"
            case other:
                raise AssertionError(f"{key} was answered with {other}")
    return said


def plain(answer: Message) -> list[bytes]:
    envelope = Envelope(request=RequestId("r"), tenant=LOCAL_TENANT, body=answer)
    return [bytes(frame) for frame in encode(envelope)]


@contextlib.contextmanager
def session(crash_at: str = "") -> Iterator[Session]:
    with short_lived_directory() as path:
        config = settings_for(path)
        running = Session(config, start(config, crash_at))
        try:
            running.run()
            yield running
        finally:
            running.daemon.close()


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, object]:
    with session() as calm:
        assert calm.starts == 1
        return links(calm.answers)


@pytest.mark.parametrize("point", STAND_IN)
def test_killed_at_this_point_a_client_that_asks_again_gets_what_it_would_have_got(
    point: str, undisturbed: dict[str, object]
):
    with session(point) as disturbed:
        assert disturbed.deaths == 1
        assert links(disturbed.answers) == undisturbed

        again = disturbed.ask(disturbed.sent)

        assert {key: plain(answer) for key, answer in again.items()} == {
            key: plain(answer) for key, answer in disturbed.answers.items()
        }


def test_no_point_is_left_out():
    sources = (file.read_text() for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
    there = {name for text in sources for name in re.findall(r'crash_point\("([^"]+)"\)', text)}

    died_at = {
        point.partition(":")[0] for point in (*STAND_IN, *(each for both in REAL for each in both if each))
    }

    assert there == died_at
    assert there == {*POINTS}
