"""The command line as its users have it: real daemons, real processes, one tiny model for all tests."""

import contextlib
import io
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from loractl.bus.config import subprocess_environment
from loractl.cli import main
from loractl.client.tiny_model import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def _call(*arguments: str | Path, stdin: str = "") -> Outcome:
    """Run a command in this process, as `loractl` would in its own."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.stdin = sys.stdin, io.StringIO(stdin)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main([str(argument) for argument in arguments])
    finally:
        sys.stdin = before
    return Outcome(int(ended.value.code or 0), out.getvalue(), err.getvalue())


class Running:
    """A command in a process of its own, to be interrupted or watched."""

    def __init__(self, *arguments: str | Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from loractl.cli import main; main()", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=subprocess_environment({"PYTHONPATH": str(ROOT / ".pkg")}),
        )
        self.seen = ""

    def until(self, text: str) -> str:
        """Read its stderr up to the line that begins with `text`; fails when it ends before."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.seen += line
            if line.startswith(text):
                return line
        raise AssertionError(f"ended without {text!r}:\n{self.seen}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> Outcome:
        try:
            out, err = self._process.communicate(timeout=200)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        return Outcome(self._process.returncode, out, self.seen + err)


@dataclass(frozen=True)
class Commands:
    """Commands on one state directory. started: processes of them."""

    state_dir: Path
    started: list[Running] = field(default_factory=list)

    def __call__(self, *arguments: str | Path, stdin: str = "") -> Outcome:
        return _call(*arguments, "--state-dir", self.state_dir, stdin=stdin)

    def running(self, *arguments: str | Path) -> Running:
        self.started.append(Running(*arguments, "--state-dir", self.state_dir))
        return self.started[-1]

    def start(self, model: Path, *settings: str) -> Outcome:
        """Without HTTP, unless the settings ask for it: most tests are about other things."""
        options = [word for setting in ("daemon.http=none", *settings) for word in ("--config", setting)]
        return self("daemon", "start", "--detach", "--base-model", f"tiny={model}", *options)


@pytest.fixture(scope="session")
def call() -> Callable[..., Outcome]:
    return _call


@pytest.fixture(scope="module")
def loractl(state_dir: Path) -> Iterator[Commands]:
    """Commands on this module's state directory; a daemon that a test leaves behind is stopped."""
    commands = Commands(state_dir)
    yield commands
    for running in commands.started:  # of tests that failed
        running.kill()
    commands("daemon", "stop")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_model(directory, steps=0)
    return directory


@pytest.fixture(scope="module")
def state_dir() -> Iterator[Path]:
    """Short, because a socket's path has room for about a hundred bytes."""
    directory = Path(tempfile.mkdtemp(prefix="loractl-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file: Path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    answers = (
        "Arr!",
        "Aye, matey.",
        "The sea be calling.",
        "Rum and wind.",
        "Hoist the sails!",
        "Land ahoy!",
    )
    file.write_text(
        "".join(f'{{"prompt": "Question {i}?", "completion": "{a}"}}\n' for i, a in enumerate(answers))
    )
    return file
