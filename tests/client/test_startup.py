"""What the daemon shall serve, as people write it."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from loractl.bus.config import Config, load_config
from loractl.bus.errors import InvalidConfig, StartFailed
from loractl.bus.listening import listen, url_of
from loractl.bus.messages import ActorPhase, ActorStatus, DaemonStatus
from loractl.client.startup import (
    StartScreen,
    base_model_settings,
    check_addresses,
    check_base_model,
    with_http,
)
from rich.console import Console


def test_a_name_with_a_path_keeps_both_and_the_path_is_absolute(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert base_model_settings("Qwen/Qwen3=models/q=3") == [
        "model.name=Qwen/Qwen3",
        f"model.path={tmp_path / 'models/q=3'}",
    ]


def test_a_directory_alone_gives_its_name(tmp_path: Path):
    (tmp_path / "tiny").mkdir()

    assert base_model_settings(f"{tmp_path}/tiny") == ["model.name=tiny", f"model.path={tmp_path / 'tiny'}"]


@pytest.mark.parametrize("text", ["", "=x", "name="])
def test_half_a_base_model_is_refused(text):
    with pytest.raises(InvalidConfig, match="NAME=PATH"):
        base_model_settings(text)


def test_a_daemon_without_a_base_model_says_both_ways_to_give_one(tmp_path: Path):
    with pytest.raises(InvalidConfig, match=r"--base-model NAME=PATH.*loractl\.toml"):
        check_base_model(load_config(state_dir=str(tmp_path), environ={}))


def test_a_directory_without_a_model_is_refused_before_anything_starts(tmp_path: Path):
    config = load_config(
        state_dir=str(tmp_path), environ={}, overrides=[f"model.path={tmp_path}", "model.name=x"]
    )

    with pytest.raises(InvalidConfig, match=r"no config\.json"):
        check_base_model(config)


def status(http: str = "", **phases: ActorPhase) -> DaemonStatus:
    actors = [
        ActorStatus(
            actor=name, role="trainer", phase=phase, pid=1, restarts=0, rss_bytes=0, waiting=0, details="tiny"
        )
        for name, phase in phases.items()
    ]
    return DaemonStatus(
        daemon_version="0",
        pid=7,
        uptime_s=3.0,
        state_dir="/state",
        base_model="tiny",
        http=http,
        actors=tuple(actors),
        adapters=0,
        versions=0,
        last_event=0,
    )


def test_each_change_of_an_actor_is_told_once_and_the_way_on_at_the_end():
    stream = io.StringIO()
    screen = StartScreen(Console(file=stream), state_option="--state-dir /state ")

    for phases in ({"a": "starting", "b": "starting"}, {"a": "ready", "b": "starting"}):
        screen.show(status(**phases))
        screen.show(status(**phases))
    screen.show(status(a="ready", b="ready"))
    screen.show(status(a="restarting", b="ready"))
    screen.show(status(a="ready", b="ready"))

    told = stream.getvalue()
    assert [line.split()[:2] for line in told.splitlines() if line[0] in "ab"] == [
        ["a", "starting"],
        ["b", "starting"],
        ["a", "ready"],
        ["b", "ready"],
        ["a", "restarting"],
        ["a", "ready"],
    ]
    assert told.count("loractl train --state-dir /state DATA.jsonl") == 1


def config_with(tmp_path: Path, http: str) -> Config:
    return load_config(state_dir=str(tmp_path), environ={}, overrides=[f"daemon.http={http}"])


def test_a_daemon_that_a_person_starts_serves_http_unless_told_otherwise(tmp_path: Path):
    chosen = {http: with_http(config_with(tmp_path, http)).daemon.http for http in ("", "none", "[::1]:80")}

    assert chosen == {"": "auto", "none": "none", "[::1]:80": "[::1]:80"}


def test_an_address_in_use_is_told_and_none_or_a_free_one_is_not(tmp_path: Path):
    for http in ("", "none", "auto", "127.0.0.1:0"):
        check_addresses(config_with(tmp_path, http))

    with listen("127.0.0.1:0") as taken, pytest.raises(StartFailed, match="already in use"):
        check_addresses(config_with(tmp_path, url_of(taken).removeprefix("http://")))


def said_when_ready(http: str) -> str:
    stream = io.StringIO()
    StartScreen(Console(file=stream, soft_wrap=True), state_option="").show(status(http, a="ready"))
    return stream.getvalue()


def test_a_disk_that_is_full_already_is_told_when_all_are_ready():
    stream = io.StringIO()
    full = replace(status(a="ready"), disk_kept_bytes=64 * 2**20)

    StartScreen(Console(file=stream, soft_wrap=True), state_option="").show(full)

    assert "the disk of /state is full (0.0 MiB free, and the journal keeps 64.0 MiB" in stream.getvalue()


def test_http_comes_with_the_way_to_it_and_with_a_warning_where_others_reach_it():
    off, here, others = map(said_when_ready, ("", "http://127.0.0.1:8000", "http://0.0.0.0:8000"))

    assert "HTTP" not in off
    assert 'HTTP on http://127.0.0.1:8000: for the Tinker SDK, eval "$(loractl env)"' in here
    assert "other machines" not in here
    assert "other machines can reach it" in others
    assert "loractl keys create NAME" in others
    assert "plain HTTP" in others
