"""Stopping: everybody is answered, nobody is left, and it takes less than five seconds."""

import signal
import time
from dataclasses import replace

import pytest
from loractl.bus.config import Config
from loractl.bus.errors import ActorStopping, DaemonGone, StartFailed
from loractl.daemon import launch
from loractl.tests.daemon.conftest import Start
from loractl.tests.daemon.real_daemon import PATIENCE_S, RealDaemon, ask, echo, gone


def ends_within_5_s_with_nobody_left(daemon: RealDaemon) -> bool:
    family, began = [process.pid for process in daemon.family()], time.monotonic()
    assert family
    code = daemon.wait()
    took_s = time.monotonic() - began
    return code == 0 and took_s < 5.0 and all(gone(pid) for pid in family)


def with_patience(config: Config, stop_timeout_s: float) -> Config:
    return replace(config, daemon=replace(config.daemon, stop_timeout_s=stop_timeout_s))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_daemon_and_all_it_started(start: Start, number: signal.Signals):
    daemon = start(sampler_0=[]).until(trainer="ready", sampler_0="ready")
    daemon.echo("start a child")

    daemon.signal(number)

    assert ends_within_5_s_with_nobody_left(daemon)


def test_an_actor_answers_what_it_holds_before_it_ends(start: Start):
    daemon = start().until(trainer="ready")
    with daemon.client() as client:
        pending = client.submit(ask("keep"))
        echo(client, "it has both")

        daemon.signal(signal.SIGTERM)

        assert pending.result(PATIENCE_S).payload.tobytes() == b"drained"
    assert daemon.wait() == 0


def test_an_actor_that_does_not_drain_is_ended_and_its_clients_are_told(start: Start, config: Config):
    daemon = start("--ignore-drain", settings=with_patience(config, 2.0)).until(trainer="ready")
    with daemon.client() as client:
        pending = client.submit(ask("keep"))
        echo(client, "it has both")
        daemon.signal(signal.SIGTERM)

        assert ends_within_5_s_with_nobody_left(daemon)
        with pytest.raises(ActorStopping):
            pending.result(PATIENCE_S)


def test_requests_that_wait_for_an_actor_are_answered_before_the_daemon_ends(start: Start):
    daemon = start("--never-ready").until(trainer="starting")
    told: list[str] = []
    with daemon.client(on_waiting=told.append) as client:
        pending = client.submit(ask("hello"))
        while not told:
            with pytest.raises(TimeoutError):
                pending.result(timeout_s=0.05)

        daemon.signal(signal.SIGTERM)

        with pytest.raises(ActorStopping, match="send the request again when it runs"):
            pending.result(PATIENCE_S)
    assert daemon.wait() == 0


def test_a_second_signal_ends_everything_at_once(start: Start, config: Config):
    daemon = start("--ignore-drain", settings=with_patience(config, 300.0)).until(trainer="ready")
    family = [process.pid for process in daemon.family()]
    daemon.signal(signal.SIGINT)
    daemon.until(trainer="stopping")

    daemon.signal(signal.SIGINT)

    daemon.wait()
    assert all(gone(pid) for pid in family)


def test_stop_returns_when_the_daemon_has_ended(start: Start, config):
    daemon = start().until(trainer="ready")
    assert launch.running(config)

    launch.stop(config)

    assert not launch.running(config)
    assert daemon.wait() == 0


def test_a_daemon_that_dies_leaves_no_client_waiting(start: Start):
    daemon = start().until(trainer="ready")
    with daemon.client() as client:
        pending = client.submit(ask("keep"))
        echo(client, "it has both")

        daemon.signal(signal.SIGKILL)

        with pytest.raises(DaemonGone):
            pending.result(PATIENCE_S)


def test_a_detached_start_that_fails_says_why_and_leaves_nothing_running(config):
    """The real trainer: it cannot start, because no base model is configured."""
    with pytest.raises(StartFailed, match=r"trainer cannot start .*: see .*trainer\.out"):
        launch.start_detached(config, PATIENCE_S)

    assert not launch.running(config)
