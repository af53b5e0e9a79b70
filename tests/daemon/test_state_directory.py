"""One daemon per state directory, and nothing left of one that was killed."""

import json
import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from loractl.bus.config import Config
from loractl.bus.errors import InvalidConfig
from loractl.bus.layout import StateLayout
from loractl.daemon import launch
from loractl.daemon.instance import actors_file, is_held
from loractl.daemon.processes import end_orphans, note_processes
from loractl.tests.daemon.conftest import Start
from loractl.tests.daemon.real_daemon import gone, until


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_user_may_enter_the_run_directory_even_an_old_one(start: Start, state_dir: Path):
    layout = StateLayout(state_dir)
    layout.run.mkdir(parents=True, mode=0o755)

    start().until(trainer="ready")

    assert mode(layout.run) == 0o700
    assert mode(layout.config) == 0o600


def test_a_state_directory_that_was_there_keeps_its_mode(start: Start, state_dir: Path):
    state_dir.chmod(0o755)

    start().until(trainer="ready")

    assert mode(state_dir) == 0o755
    assert mode(StateLayout(state_dir).logs) == 0o700


def test_a_second_daemon_on_the_same_directory_is_refused_by_name(start: Start, state_dir: Path):
    first = start().until(trainer="ready")

    second = start()

    assert second.wait() == 2
    assert second.stderr().startswith(
        f"daemon_already_running: a daemon (pid {first.process.pid}) runs on {state_dir}"
    )
    assert first.echo("still here") == "still here"


def test_a_daemon_starts_over_what_a_killed_one_left(start: Start, state_dir: Path):
    first = start().until(trainer="ready")
    layout = StateLayout(state_dir)
    first.signal(signal.SIGKILL)
    first.wait()
    assert layout.pid.exists()
    assert Path(layout.client_socket.removeprefix("ipc://")).exists()

    second = start().until(trainer="ready")

    assert second.echo("hello") == "hello"
    assert layout.pid.read_text() == f"{second.process.pid}\n"


def test_a_killed_daemons_actors_are_ended_by_the_next_one(start: Start):
    first = start("--survive-the-daemon").until(trainer="ready")
    pid, child = int(first.echo("pid")), int(first.echo("start a child"))
    first.signal(signal.SIGKILL)
    first.wait()
    assert psutil.pid_exists(pid)

    start().until(trainer="starting")

    assert gone(pid)
    assert gone(child)


def test_an_actor_ends_itself_when_its_daemon_was_killed(start: Start):
    daemon = start().until(trainer="ready")
    pid = int(daemon.echo("pid"))

    daemon.signal(signal.SIGKILL)

    assert gone(pid)


def test_nothing_of_a_stopped_daemon_stays_in_the_run_directory(start: Start, state_dir: Path):
    daemon = start().until(trainer="ready")
    assert is_held(StateLayout(state_dir))

    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0

    assert not is_held(StateLayout(state_dir))
    assert sorted(path.name for path in (state_dir / "run").iterdir()) == ["config.json", "daemon.lock"]


def test_a_state_directory_that_cannot_be_made_is_named(start: Start, config: Config, state_dir: Path):
    (state_dir / "file").write_text("")
    nowhere = replace(config, state_dir=str(state_dir / "file"))

    with pytest.raises(InvalidConfig, match=f"the state directory {nowhere.state_dir} cannot be used"):
        launch.run_foreground(nowhere)
    assert not launch.running(nowhere)


def test_a_path_too_long_for_sockets_is_refused_before_anything_is_made(config: Config, state_dir: Path):
    long = replace(config, state_dir=str(state_dir / ("x" * 100)))

    with pytest.raises(InvalidConfig, match="choose a shorter --state-dir"):
        launch.run_foreground(long)
    assert not Path(long.state_dir).exists()


# --- orphans: only what is truly ours --------------------------------------------------------------

SLEEPER = [sys.executable, "-c", "import signal; signal.pause()"]


def test_a_process_that_was_noted_is_ended(tmp_path: Path):
    process = subprocess.Popen(SLEEPER, start_new_session=True)
    note_processes(tmp_path / "actors.json", {"trainer": process.pid})

    end_orphans(tmp_path / "actors.json")

    assert process.wait(10) == -signal.SIGKILL
    assert not (tmp_path / "actors.json").exists()


def test_a_process_that_got_the_number_of_an_old_one_is_left_alone(tmp_path: Path):
    process = subprocess.Popen(SLEEPER, start_new_session=True)
    noted = {"trainer": {"pid": process.pid, "started": psutil.Process(process.pid).create_time() - 60}}
    (tmp_path / "actors.json").write_text(json.dumps(noted))

    end_orphans(tmp_path / "actors.json")

    assert process.poll() is None
    process.kill()
    process.wait()


def test_a_child_that_outlived_its_leader_is_ended(tmp_path: Path):
    script = f"import subprocess as s; print(s.Popen({SLEEPER!r}, stdout=s.DEVNULL).pid, flush=True); input()"
    leader = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    child = int(leader.stdout.readline())
    note_processes(tmp_path / "actors.json", {"sampler-0": leader.pid})
    leader.communicate(b"end\n")
    assert not gone(child, timeout_s=0.1)

    end_orphans(tmp_path / "actors.json")

    assert gone(child)


def test_a_torn_or_foreign_note_is_ignored(tmp_path: Path):
    for text in ("", "{", "[]", '{"trainer": 7}', '{"trainer": {"pid": "x", "started": 0}}'):
        (tmp_path / "actors.json").write_text(text)

        end_orphans(tmp_path / "actors.json")


def test_the_noted_processes_follow_restarts(start: Start, config: Config):
    daemon = start().until(trainer="ready")
    pid = int(daemon.echo("pid"))
    file = actors_file(StateLayout(Path(config.state_dir)))
    assert json.loads(file.read_text())["trainer"]["pid"] == pid

    os.kill(pid, signal.SIGKILL)
    daemon.until(trainer="restarting")
    again = int(daemon.echo("pid"))

    assert until(lambda: json.loads(file.read_text())["trainer"]["pid"] == again)
