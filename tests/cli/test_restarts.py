"""A daemon that is restarted, or dies, in the middle of what people do: the same ends, after a pause."""

import json
import os
import signal
from pathlib import Path

import pytest
from loractl.bus.layout import StateLayout
from loractl.client import connect
from loractl.daemon.instance import is_held
from loractl.tests.cli.conftest import Commands, Outcome
from loractl.tests.daemon.real_daemon import until

# So many that a run is far from its end when its daemon dies, however late the machine lets us kill it.
STEPS = 80
SETTINGS = ("sampler.engine=torch", "trainer.threads=1", "journal.snapshot_s=0.5")


@pytest.fixture(scope="module", autouse=True)
def daemon(loractl: Commands, tiny_model: Path) -> None:
    started = loractl.start(tiny_model, *SETTINGS)
    assert started.code == 0, started.err


@pytest.fixture(scope="module")
def train(rows: Path) -> tuple[str | Path, ...]:
    steps = ("--max-steps", str(STEPS), "--save-every", "10")
    return ("train", rows, "--rank", "4", "--lr", "1e-2", "--batch-size", "4", *steps, "--adapter")


def weights_digest(loractl: Commands, name: str) -> str:
    shown = json.loads(loractl("adapters", "show", name, "--json").out)
    return str(shown["versions"][-1]["digest"])


@pytest.fixture(scope="module")
def undisturbed(loractl: Commands, train: tuple[str | Path, ...]) -> str:
    outcome = loractl(*train, "undisturbed")
    assert outcome.code == 0, outcome.err
    return weights_digest(loractl, "undisturbed")


def daemon_pid(loractl: Commands) -> int:
    return int(json.loads(loractl("daemon", "status", "--json").out)["daemon"]["pid"])


def kill_daemon(loractl: Commands, pid: int) -> None:
    """Its actors notice, and end themselves."""
    os.kill(pid, signal.SIGKILL)
    assert until(lambda: not is_held(StateLayout(loractl.state_dir)))


def steps_of(run: Outcome) -> list[int]:
    """Those that were shown: one in four, and what was slow."""
    return [int(line.split()[1].split("/")[0]) for line in run.err.splitlines() if line.startswith("step ")]


def test_a_run_outlives_a_restart_and_a_kill_of_the_daemon_to_the_same_bits(
    loractl: Commands, train: tuple[str | Path, ...], tiny_model: Path, undisturbed: str
):
    settings = (loractl.state_dir / "run" / "config.json").read_text()
    run = loractl.running(*train, "disturbed")
    run.until("step 8/")
    restarted = loractl("daemon", "restart")
    assert (loractl.state_dir / "run" / "config.json").read_text() == settings
    pid = daemon_pid(loractl)
    run.until("step 16/")
    kill_daemon(loractl, pid)
    run.until("waiting: the daemon on ")
    started = loractl.start(tiny_model, *SETTINGS)
    ended = run.end()

    assert restarted.code == started.code == ended.code == 0, (restarted.err, started.err, ended.err)
    assert f"published disturbed version 1 (step {STEPS})" in ended.out
    away = f"waiting: the daemon on {loractl.state_dir} is away: what is under way goes on when it is back"
    assert ended.err.count(away) == 2
    shown = steps_of(ended)
    assert shown == sorted(set(shown))
    assert {1, *range(4, STEPS + 1, 4)} <= set(shown)
    assert weights_digest(loractl, "disturbed") == undisturbed


def test_python_users_get_every_answer_whatever_happens_to_the_daemon(loractl: Commands, undisturbed: str):
    with connect(str(loractl.state_dir)) as service:
        adapter = service.open_adapter("undisturbed")
        request = service.sample_request("Question 1?", adapter="undisturbed", seed=3, max_tokens=400)
        before = service.submit_sample(request).result(120)
        steps = [adapter.optim_step(1e-3) for _ in range(3)]
        sampling = service.submit_sample(request)
        assert loractl("daemon", "restart").code == 0

        assert [each.result(120).step for each in steps] == [STEPS] * 3
        assert sampling.result(120).tokens.tolist() == before.tokens.tolist()


def test_a_run_whose_daemon_stays_away_is_ended_by_ctrl_c(loractl: Commands, train: tuple[str | Path, ...]):
    """Stays the last of this file."""
    run = loractl.running(*train[:-1], "--adapter", "left", "--max-steps", "100000")
    run.until("step 1/")
    assert loractl("daemon", "stop").code == 0
    run.until("waiting: the daemon on ")

    run.interrupt()
    run.until("stopping: ")
    run.interrupt()

    assert run.end().code == 130
    assert loractl("daemon", "restart").code == 2
