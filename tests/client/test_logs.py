"""Logs: several files as one stream, by time, also while they grow."""

import json
from pathlib import Path

from loractl.bus.log_file import LogFile, older_log
from loractl.client.logs import LogFolder, merged_log, parse_line


def event(second: int, name: str, **facts: object) -> str:
    at = f"2026-01-01T00:00:{second:02}Z"
    return json.dumps({"timestamp": at, "level": "info", "event": name, **facts}) + "\n"


def test_lines_of_all_actors_are_merged_by_time(tmp_path: Path):
    (tmp_path / "trainer.log").write_text(event(1, "a") + event(4, "d"))
    (tmp_path / "daemon.log").write_text(event(2, "b") + event(3, "c"))
    (tmp_path / "trainer.out").write_text("library noise\n")

    lines = LogFolder(tmp_path).new_lines()

    assert [(line.actor, line.event) for line in lines] == [
        ("trainer", "a"),
        ("daemon", "b"),
        ("daemon", "c"),
        ("trainer", "d"),
    ]


def test_a_line_reads_as_time_actor_level_event_and_facts():
    line = parse_line("trainer", event(1, "slot.swapped", slot=3, why="it was needed", ratio=0.123456789))

    text = str(line.text())

    assert "trainer" in text
    assert text.endswith('slot.swapped  slot=3 why="it was needed" ratio=0.123457')


def test_a_traceback_stands_below_its_line():
    line = parse_line("trainer", event(1, "loop.failed", exception="Traceback:\n  boom"))

    assert str(line.text()).endswith("loop.failed\nTraceback:\n  boom")


def test_a_line_that_is_not_json_is_shown_as_it_is():
    assert str(parse_line("trainer", "Killed").text()).split() == ["trainer", "Killed"]
    assert parse_line("trainer", "[" * 100_000).event.startswith("[[")


def test_following_shows_what_is_added_and_never_half_a_line(tmp_path: Path):
    file = tmp_path / "trainer.log"
    file.write_text(event(1, "a"))
    additions = iter([event(2, "b") + '{"timestamp": "2026', "", '-01-01T00:00:03Z"}\n' + event(4, "d")])

    def wait() -> None:
        with file.open("a") as stream:
            stream.write(next(additions))

    seen = merged_log(tmp_path, last=10, wait=wait)

    assert [next(seen).event for _ in range(4)] == ["a", "b", "", "d"]


def test_a_log_that_was_begun_anew_is_read_from_its_start(tmp_path: Path):
    file = tmp_path / "trainer.log"
    file.write_text(event(1, "a") + event(2, "b"))
    logs = LogFolder(tmp_path)
    logs.new_lines()

    file.write_text(event(3, "c"))

    assert [line.event for line in logs.new_lines()] == ["c"]


def test_a_log_that_became_too_long_is_read_on_in_its_next_file(tmp_path: Path):
    file, older = tmp_path / "trainer.log", tmp_path / "trainer.log.old"
    older.write_text(event(1, "a"))
    file.write_text(event(2, "b"))
    logs = LogFolder(tmp_path)
    first = logs.new_lines()

    with file.open("a") as stream:
        stream.write(event(3, "c"))
    file.replace(older)
    file.write_text(event(4, "d"))
    turned = logs.new_lines()
    with file.open("a") as stream:
        stream.write(event(5, "e"))

    assert [line.event for line in first] == ["a", "b"]
    assert [line.event for line in turned] == ["c", "d"]
    assert [line.event for line in logs.new_lines()] == ["e"]


def test_a_log_that_just_now_gets_another_name_is_read_the_next_time(tmp_path: Path):
    file, older = tmp_path / "trainer.log", tmp_path / "trainer.log.old"
    file.symlink_to(tmp_path / "not there yet")
    logs = LogFolder(tmp_path)

    assert logs.new_lines() == []
    file.unlink()
    older.write_text(event(1, "a"))
    file.write_text(event(2, "b"))

    assert [line.event for line in logs.new_lines()] == ["a", "b"]


def test_what_is_written_is_what_is_read_across_the_bound(tmp_path: Path):
    written = LogFile(tmp_path / "trainer.log", "trainer", keep_bytes=2000)
    logs = LogFolder(tmp_path)

    seen = []
    for second in range(60):
        written.write(event(second, f"e{second}"))
        if second % 5 == 0:
            seen += logs.new_lines()
    seen += logs.new_lines()

    assert older_log(tmp_path / "trainer.log").exists()
    assert [line.event for line in seen] == [f"e{second}" for second in range(60)]


def test_only_the_last_lines_are_shown_unless_all_are_asked_for(tmp_path: Path):
    (tmp_path / "trainer.log").write_text("".join(event(i, str(i)) for i in range(9)))

    assert [line.event for line in merged_log(tmp_path, last=2)] == ["7", "8"]
    assert len(list(merged_log(tmp_path, last=0))) == 9
