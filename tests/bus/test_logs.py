"""Logs: JSON lines with facts, readable on a terminal, and never anybody's text."""

import ast
import errno
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import structlog
from loractl.bus.config import LogConfig
from loractl.bus.logs import configure_logs

ROOT = Path(__file__).resolve().parents[2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _defaults_afterwards() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def lines(directory: Path, actor: str = "trainer") -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / f"{actor}.log").read_text().splitlines()]


def test_an_event_is_one_json_line_with_its_facts(tmp_path: Path) -> None:
    configure_logs(LogConfig(), "trainer", tmp_path / "logs")

    structlog.get_logger().info("slot.swapped", slot=3, bytes=17)

    (line,) = lines(tmp_path / "logs")
    assert line.pop("timestamp")
    assert line == {"event": "slot.swapped", "level": "info", "process": "trainer", "slot": 3, "bytes": 17}


def test_levels_below_the_configured_one_are_left_out(tmp_path: Path) -> None:
    configure_logs(LogConfig(level="warning"), "trainer", tmp_path)

    structlog.get_logger().info("slot.swapped")
    structlog.get_logger().warning("slot.lost")

    assert [line["event"] for line in lines(tmp_path)] == ["slot.lost"]


def test_a_terminal_shows_a_readable_copy(tmp_path: Path) -> None:
    terminal = Terminal()
    configure_logs(LogConfig(), "daemon", tmp_path, terminal=terminal)

    structlog.get_logger().info("actor.started", pid=17)

    shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert "actor.started" in shown
    assert "pid=17" in shown
    assert lines(tmp_path, "daemon")[0]["pid"] == 17


def test_a_stream_that_is_no_terminal_stays_clean(tmp_path: Path) -> None:
    stream = io.StringIO()
    configure_logs(LogConfig(), "daemon", tmp_path, terminal=stream)

    structlog.get_logger().info("actor.started")

    assert stream.getvalue() == ""


def test_text_and_tokens_are_withheld(tmp_path: Path) -> None:
    configure_logs(LogConfig(), "trainer", tmp_path)

    structlog.get_logger().info(
        "sample.ended", prompt="my secret", tokens=[1, 2], logprobs=np.zeros(3, np.float32), tokens_total=5
    )

    (line,) = lines(tmp_path)
    assert (line["prompt"], line["tokens"], line["tokens_total"]) == ("<9 characters>", "<2 items>", 5)
    assert line["logprobs"] == "<float32 [3]>"


def test_an_exception_is_logged_without_local_variables(tmp_path: Path) -> None:
    terminal = Terminal()
    configure_logs(LogConfig(), "trainer", tmp_path, terminal=terminal)

    def fail(prompt: str) -> None:
        raise KeyError("missing")

    try:
        fail("my secret" * 2)
    except KeyError:
        structlog.get_logger().exception("work.crashed")

    (line,) = lines(tmp_path)
    assert "KeyError: 'missing'" in str(line["exception"])
    assert "my secretmy secret" not in (tmp_path / "trainer.log").read_text() + terminal.getvalue()


Full = Callable[[int | None], None]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Full]:
    """So many more bytes the system's write takes, then it refuses; None: it takes all again."""
    room: list[int | None] = [None]
    write = os.write

    def limited(descriptor: int, data: bytes) -> int:
        if room[0] is None:
            return write(descriptor, data)
        some, room[0] = data[: room[0]], max(0, room[0] - len(data))
        if not some:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, some)

    monkeypatch.setattr(os, "write", limited)
    yield lambda left: room.__setitem__(0, left)
    room[0] = None


def test_a_full_disk_costs_lines_and_nothing_else_and_is_told_once_it_is_over(
    tmp_path: Path, full_disk: Full
) -> None:
    configure_logs(LogConfig(), "trainer", tmp_path)
    log = structlog.get_logger()
    log.info("some.before")

    full_disk(0)
    log.info("some.lost")
    log.info("some.lost")
    full_disk(None)
    log.info("some.after")
    log.info("some.later")

    before, dropped, *after = lines(tmp_path)
    assert before["event"] == "some.before"
    assert (dropped["event"], dropped["lines"], dropped["process"]) == ("log.lines_dropped", 2, "trainer")
    assert [line["event"] for line in after] == ["some.after", "some.later"]


def test_a_line_of_which_half_was_written_is_not_continued_by_the_next(
    tmp_path: Path, full_disk: Full
) -> None:
    configure_logs(LogConfig(), "trainer", tmp_path)
    log = structlog.get_logger()

    full_disk(10)
    log.info("some.torn")
    log.info("some.lost")
    full_disk(None)
    log.info("some.after")

    torn, *whole = (tmp_path / "trainer.log").read_text().splitlines()
    assert len(torn) == 10
    assert [json.loads(line)["event"] for line in whole] == ["log.lines_dropped", "some.after"]
    assert json.loads(whole[0])["lines"] == 2


def test_a_log_keeps_to_its_bound_and_its_newest_lines(tmp_path: Path) -> None:
    configure_logs(LogConfig(keep_bytes=20_000), "trainer", tmp_path)

    for number in range(1000):
        structlog.get_logger().info("some.event", number=number)

    files = [tmp_path / "trainer.log.old", tmp_path / "trainer.log"]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert 10_000 < sum(file.stat().st_size for file in files) <= 20_000
    numbers = [json.loads(line)["number"] for file in files for line in file.read_text().splitlines()]
    assert numbers == [*range(numbers[0], 1000)]


def test_a_process_that_starts_again_goes_on_with_its_log(tmp_path: Path) -> None:
    for life in range(3):
        configure_logs(LogConfig(keep_bytes=20_000), "trainer", tmp_path)
        structlog.get_logger().info("some.start", life=life)

    assert [line["life"] for line in lines(tmp_path)] == [0, 1, 2]


def test_events_of_the_whole_package_are_dotted_names() -> None:
    folders = ("bus", "client", "daemon", "trainer_actor", "sampler_actor", "tinker_bridge")
    names = [
        (file.name, call.args[0].value)
        for folder in folders
        for file in (ROOT / folder).rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "log"
        and call.args
        and isinstance(call.args[0], ast.Constant)
    ]

    assert names
    assert [name for name in names if not re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", str(name[1]))] == []
