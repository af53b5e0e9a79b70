"""Actors die, hang and fail to start: the daemon lives on, and every client is told."""

import json
import re
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from loractl.bus.errors import ActorRestarting, ActorUnavailable
from loractl.bus.log_file import older_log
from loractl.bus.messages import GetStatus, Ping, Pong
from loractl.daemon.processes import spawn
from loractl.tests.daemon.conftest import Start
from loractl.tests.daemon.real_daemon import PATIENCE_S, RealDaemon, ask, echo, gone


def test_a_request_goes_through_a_real_actor_and_back(shared: RealDaemon):
    assert shared.echo("hello") == "hello"


def test_an_actor_counts_only_when_it_says_ready_on_its_socket(start: Start):
    daemon = start("--never-ready").until(trainer="starting")
    reasons: list[str] = []

    with daemon.client(on_waiting=reasons.append) as client:
        pending = client.submit(ask("hello"))
        with pytest.raises(TimeoutError):
            pending.result(timeout_s=0.5)
        assert isinstance(client.request(Ping(), timeout_s=PATIENCE_S), Pong)
        [actor] = client.request(GetStatus(), timeout_s=PATIENCE_S).actors

    assert reasons == ["the trainer is starting"]
    assert (actor.phase, actor.waiting) == ("starting", 0)
    assert psutil.pid_exists(actor.pid)


def test_a_killed_actor_comes_back_and_its_clients_are_told_to_send_again(start: Start):
    daemon = start().until(trainer="ready")
    with daemon.client() as client:
        pid = int(echo(client, "pid"))
        pending = client.submit(ask("keep"))
        echo(client, "the actor has both by now")

        psutil.Process(pid).kill()

        with pytest.raises(ActorRestarting, match="send the request again"):
            pending.result(PATIENCE_S)
        again = int(echo(client, "pid"))
    assert again != pid
    daemon.until(trainer="ready")
    assert daemon.phases["trainer"][:2] == ["ready", 1]


def test_what_an_actor_answered_before_it_died_counts(start: Start):
    daemon = start().until(trainer="ready")

    assert daemon.echo("answer and die") == "last words"


def test_a_dead_actors_children_die_with_it(start: Start):
    daemon = start().until(trainer="ready")
    with daemon.client() as client:
        pid, child = int(echo(client, "pid")), int(echo(client, "start a child"))
        assert psutil.pid_exists(child)

        psutil.Process(pid).kill()
        daemon.until(trainer="restarting")

    assert gone(child)


def test_an_actor_that_hangs_is_ended_and_started_again(start: Start, config):
    strict = replace(config, daemon=replace(config.daemon, heartbeat_timeout_s=2.0))
    daemon = start(settings=strict).until(trainer="ready")

    with daemon.client() as client, pytest.raises(ActorRestarting):
        client.request(ask("hang"), timeout_s=PATIENCE_S)

    daemon.until(trainer="ready")
    assert daemon.phases["trainer"][1] == 1
    assert daemon.echo("hello") == "hello"


def test_an_actor_that_lives_and_gets_no_further_is_ended_and_started_again(start: Start, config):
    strict = replace(config, daemon=replace(config.daemon, stuck_s=1.0))
    daemon = start(settings=strict).until(trainer="ready")

    with daemon.client() as client, pytest.raises(ActorRestarting):
        client.request(ask("stand still"), timeout_s=PATIENCE_S)

    daemon.until(trainer="ready")
    assert daemon.phases["trainer"][1] == 1
    assert daemon.echo("hello") == "hello"
    said = [json.loads(line) for line in (daemon.layout.logs / "daemon.log").read_text().splitlines()]
    (hung,) = [each for each in said if each["event"] == "actor.hung"]
    assert re.fullmatch("got no further for [0-9]+ s with what it was at", hung["cause"])


def test_an_actor_that_is_slow_and_gets_on_is_left_alone(start: Start, config):
    strict = replace(config, daemon=replace(config.daemon, stuck_s=1.5))
    daemon = start(settings=strict).until(trainer="ready")

    assert daemon.echo("work slowly") == "done"

    with daemon.client() as client:
        [actor] = client.request(GetStatus(), timeout_s=PATIENCE_S).actors
    assert actor.restarts == 0


def test_what_earlier_lives_printed_makes_room_if_it_is_much(tmp_path: Path):
    output = tmp_path / "trainer.out"
    output.write_bytes(b"x" * (17 * 2**20))

    for word in ("first", "second"):
        spawn(["echo", word], output).wait()

    assert [line for line in output.read_text().splitlines() if "---" not in line] == ["first", "second"]
    assert older_log(output).stat().st_size == 17 * 2**20


def test_an_actor_that_is_not_ready_in_time_is_ended(start: Start, config):
    impatient = replace(config, daemon=replace(config.daemon, ready_timeout_s=1.0, restart_limit=1))
    daemon = start("--never-ready", settings=impatient)

    assert daemon.wait() == 3
    assert "was not ready after 1 s and was ended" in daemon.stderr()


def test_an_actor_that_fails_too_often_is_given_up_and_the_daemon_lives(start: Start, state_dir: Path):
    daemon = start("--fail-after-first", str(state_dir / "lived")).until(trainer="ready")
    with daemon.client() as client:
        with pytest.raises(ActorRestarting):
            client.request(ask("die"), timeout_s=PATIENCE_S)

        with pytest.raises(ActorUnavailable, match="ended with exit code 1"):
            client.request(ask("hello"), timeout_s=PATIENCE_S)

        assert isinstance(client.request(Ping(), timeout_s=PATIENCE_S), Pong)
    daemon.until(trainer="failed")
    assert daemon.phases["trainer"][1] == 2


def test_a_start_fails_when_an_actor_says_that_trying_again_changes_nothing(start: Start):
    daemon = start("--exit", "3")

    assert daemon.wait() == 3
    said = daemon.stderr()
    assert said.startswith("start_failed: trainer cannot start (ended with exit code 3): see ")
    assert "trainer.out" in said
    assert "the base model is not there" in said


def test_a_start_fails_when_an_actor_dies_again_and_again(start: Start):
    daemon = start("--exit", "1")

    assert daemon.wait() == 3
    out = (Path(daemon.config.state_dir) / "logs" / "trainer.out").read_text()
    assert out.count("the base model is not there") == 3


def test_one_actors_death_leaves_the_others_alone(start: Start):
    daemon = start(sampler_0=[]).until(trainer="ready", sampler_0="ready")
    with daemon.client() as client:
        trainer = int(echo(client, "pid"))
        psutil.Process(trainer).send_signal(signal.SIGKILL)
        daemon.until(trainer="restarting")

        assert client.request(GetStatus(), timeout_s=PATIENCE_S).actors[1].phase == "ready"
