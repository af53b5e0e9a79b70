"""What the command line says before any daemon is asked: help, usage, one line for every error."""

from pathlib import Path

import pytest
from loractl import cli
from loractl.bus.errors import Internal, StartFailed
from loractl.client.boundary import guarded

COMMANDS = [
    "daemon start",
    "daemon status",
    "daemon stop",
    "daemon restart",
    "daemon logs",
    "train",
    "sample",
    "adapters list",
    "adapters show",
    "adapters rm",
    "adapters export",
    "adapters import",
    "usage",
    "keys create",
    "keys list",
    "keys revoke",
    "env",
    "tokenizer-cache",
    "model tiny",
    "doctor",
]
WITHOUT_A_DAEMON = [
    "daemon status",
    "daemon stop",
    "daemon restart",
    "sample hello",
    "adapters list",
    "adapters list --all",
    "usage",
    "adapters show x",
    "adapters rm x",
    "adapters export x somewhere",
    "env",
]


def error_line(outcome) -> str:
    """The one line on stderr; stdout stays empty."""
    assert outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(call, command):
    outcome = call(*command.split(), "--help")

    assert outcome.code == 0
    assert f"Usage: loractl {command}" in outcome.out
    (listed,) = (
        line
        for line in call(*command.split()[:-1], "--help").out.split("Commands:")[1].splitlines()
        if line.split()[:1] == command.split()[-1:]
    )
    assert not listed.endswith("...")


def test_the_commands_without_arguments_show_their_help_as_a_mistake(call):
    assert call().code == 2
    assert "Commands:" in call().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing argument 'DATA.jsonl'"),
        (["train", "x.jsonl"], "Missing option '--adapter'"),
        (["train", "x.jsonl", "--adapter", "a", "--rank", "many"], "'many' is not a valid integer"),
        (["train", "x.jsonl", "--adapter", "a", "--loss", "mse"], "'mse' is not one of"),
        (["daemon", "restart", "--config", "trainer.slots=3"], "a restart keeps the settings"),
        (["daemon", "status", "--config", "trainer.slot=3"], "the nearest is 'trainer.slots'"),
        (
            ["daemon", "status", "--config", "trainer.slots=few"],
            "trainer.slots is 'few': it must be a whole number",
        ),
        (
            ["daemon", "status", "--config", "trainer.device_bytes=2GiB"],
            "is '2GiB': it must be a whole number",
        ),
        (["daemon", "status", "--config", "trainer.gather_s=soon"], "is 'soon': it must be a number"),
        (["daemon", "status", "--config", "trainer.fuse=maybe"], "is 'maybe': it must be true or false"),
        (
            ["daemon", "status", "--config", "sampler.engine=onnx"],
            "is 'onnx': it must be auto or vllm or torch",
        ),
        (["daemon", "start"], "--base-model NAME=PATH"),
        (["daemon", "start", "--base-model", "Qwen/Qwen3-0.6B"], "--base-model Qwen/Qwen3-0.6B=PATH"),
        (["daemon", "start", "--base-model", "x=/nowhere", "--http", "localhost"], "write HOST:PORT"),
        (
            ["daemon", "start", "--base-model", "x=/nowhere", "--http", "http://localhost:1"],
            "write HOST:PORT",
        ),
        (["keys", "create", "../a"], "cannot name a key"),
        (["keys", "create", "local"], "the local user's own key"),
        (["keys", "revoke", "nobody"], "no key named 'nobody'"),
        (["tokenizer-cache", "a/b/c", "/nowhere"], "write NAME or ORG/NAME"),
        (["tokenizer-cache", "a/b", "/nowhere"], "no config.json"),
        (["daemon", "logs", "-n", "-5"], "-5 is not in the range"),
        (["sample", "hello", "--max-tokens", "0"], "0 is not in the range"),
        (["sample", "hello", "-n", "0"], "0 is not in the range"),
        (["daemon", "start", "--base-model", "x=/nowhere"], "no config.json"),
        (["train", "missing.jsonl", "--adapter", "a"], "cannot read missing.jsonl"),
        (["adapters", "import", "/nowhere", "a"], "is /nowhere a PEFT directory"),
        (["adapters", "import", "/nowhere", "../a"], "cannot name an adapter"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(call, arguments, says, tmp_path, monkeypatch):
    monkeypatch.setenv("LORACTL_STATE_DIR", str(tmp_path))

    outcome = call(*arguments)

    assert outcome.code == 2
    assert says in error_line(outcome)


@pytest.mark.parametrize("command", WITHOUT_A_DAEMON)
def test_a_command_that_needs_a_daemon_says_how_to_start_one(call, command, tmp_path):
    outcome = call(*command.split(), "--state-dir", tmp_path)

    assert outcome.code == 2
    assert f"no daemon runs on {tmp_path}" in error_line(outcome)
    assert "loractl daemon start" in outcome.err


def test_training_without_a_daemon_or_a_model_names_both_ways_out(call, rows, tmp_path):
    outcome = call("train", rows, "--adapter", "a", "--state-dir", tmp_path / "state")

    assert outcome.code == 2
    assert "--base-model NAME=PATH" in error_line(outcome)
    assert "loractl.toml" in outcome.err


def test_every_bad_row_is_told_before_anything_starts(call, tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "a", "completion": "b"}\nnope\n')

    outcome = call("train", file, "--adapter", "a", "--state-dir", tmp_path / "state")

    assert outcome.code == 2
    assert outcome.err.splitlines() == [
        f"{file}:1: no 'completion'",
        f"{file}:3: not JSON: Expecting value at column 1",
        f"error: 2 of 3 rows of {file} cannot be used: mend or remove them; nothing was trained",
    ]


def test_of_many_bad_rows_the_first_ones_are_told(call, tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text("nope\n" * 500)

    outcome = call("train", file, "--adapter", "a", "--state-dir", tmp_path / "state")

    lines = outcome.err.splitlines()
    assert len(lines) == 22
    assert lines[-2] == "… and 480 more"
    assert "500 of 500 rows" in lines[-1]


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (Internal("the server has a bug"), 1, "error: the server has a bug"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("x"), 1, "error: internal: ZeroDivisionError: x; this is a bug of loractl"),
    ],
)
def test_failures_of_ours_have_exit_codes_of_their_own(capsys, raised, code, says):
    def fails() -> int:
        raise raised

    assert guarded(fails) == code

    told = capsys.readouterr()
    assert told.err.strip().startswith(says)
    assert told.out == ""
    assert "Traceback" not in told.err


def test_what_a_dying_actor_said_stands_above_the_one_error_line(capsys):
    def fails() -> int:
        raise StartFailed("trainer cannot start: see trainer.out\n  out of memory\n  killed")

    assert guarded(fails) == 1

    assert capsys.readouterr().err.splitlines() == [
        "  out of memory",
        "  killed",
        "error: trainer cannot start: see trainer.out",
    ]


def test_a_traceback_is_for_those_who_ask_for_it(call, tmp_path, monkeypatch):
    monkeypatch.setenv("LORACTL_LOG__LEVEL", "debug")

    outcome = call("daemon", "status", "--state-dir", tmp_path)

    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: no daemon runs on")


def test_the_version_is_data(call):
    outcome = call("--version")

    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("loractl, version ")


def test_logs_without_a_daemon_are_those_it_left(call, tmp_path: Path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "daemon.log").write_text('{"event": "daemon.stopping", "level": "info"}\n')

    outcome = call("daemon", "logs", "--state-dir", tmp_path)

    assert outcome.code == 0
    assert "daemon.stopping" in outcome.out


def test_logs_where_no_daemon_has_run_say_so(call, tmp_path: Path):
    outcome = call("daemon", "logs", "--state-dir", tmp_path)

    assert (outcome.code, outcome.out) == (0, "")
    assert f"no logs in {tmp_path}/logs yet" in outcome.err


def test_the_entry_point_of_the_package_is_this_command():
    assert callable(cli.main)
