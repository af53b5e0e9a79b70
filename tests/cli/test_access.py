"""What a client over HTTP needs, from the command line: keys, the environment, the tokenizer."""

import json
import shlex
import subprocess
from pathlib import Path

import httpx
import pytest
from loractl.bus.keys import Keys
from loractl.bus.layout import StateLayout
from loractl.bus.listening import listen, url_of
from loractl.tests.daemon.real_daemon import free_address

FEW = ("sampler.count=0", "trainer.threads=1")


def as_a_shell_has_it(text: str, *names: str) -> list[str]:
    """The variables' values once a shell has evaluated the text."""
    script = f"{text}\nprintf '%s\\n' " + " ".join(f'"${name}"' for name in names)
    run = subprocess.run(["/bin/sh", "-uc", script], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


def test_a_key_is_shown_once_listed_and_revoked(call, tmp_path: Path):
    place = ("--state-dir", tmp_path / "state")

    empty = call("keys", "list", *place)
    made = call("keys", "create", "alice", *place)
    again = call("keys", "create", "alice", *place)
    table = call("keys", "list", *place)
    data = json.loads(call("keys", "list", "--json", *place).out)
    revoked = call("keys", "revoke", "alice", *place)
    gone = call("keys", "list", "--json", *place)

    key = made.out.rstrip("\n")
    assert (empty.code, empty.out) == (0, "")
    assert "loractl keys create NAME" in empty.err
    assert key.startswith("tml-")
    assert len(key.split()) == 1
    assert again.code == 2
    assert "keys revoke alice" in again.err
    assert [line.split("\t")[0] for line in table.out.splitlines()] == ["NAME", "alice"]
    assert [(each["name"], each["key"]) for each in data] == [("alice", f"{key[:10]}…")]
    assert key not in table.out
    assert revoked.code == 0
    assert json.loads(gone.out) == []


def test_a_tokenizer_is_cached_and_the_exports_are_for_a_shell(call, tiny_model: Path, tmp_path: Path):
    cache = tmp_path / "it's a cache"

    outcome = call("tokenizer-cache", "Org/Name", tiny_model, "--cache", cache)

    assert outcome.code == 0, outcome.err
    assert as_a_shell_has_it(outcome.out, "HF_HUB_CACHE", "HF_HUB_OFFLINE") == [str(cache), "1"]
    assert (cache / "models--Org--Name" / "refs" / "main").is_file()
    assert "Org/Name is now the tokenizer in" in outcome.err


def test_a_tokenizer_goes_where_hugging_face_looks_and_by_the_name_that_clients_use(
    call, tiny_model: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))

    outcome = call("tokenizer-cache", "meta-llama/Llama-3.2-1B", tiny_model)

    assert outcome.code == 0, outcome.err
    assert sorted(each.name for each in (tmp_path / "hub").iterdir()) == [
        "models--meta-llama--Llama-3.2-1B",
        "models--thinkingmachineslabinc--meta-llama-3-instruct-tokenizer",
    ]


def test_a_port_in_use_is_told_before_anything_starts(call, tiny_model: Path, tmp_path: Path):
    with listen("127.0.0.1:0") as taken:
        address = url_of(taken).removeprefix("http://")

        outcome = call(
            "daemon",
            "start",
            "--base-model",
            tiny_model,
            "--http",
            address,
            "--state-dir",
            tmp_path / "state",
        )

    assert outcome.code == 1
    assert outcome.err.startswith(f"error: cannot serve HTTP on {address}: address already in use")
    assert not (tmp_path / "state").exists()


def test_a_started_daemon_is_found_by_the_sdks_variables_also_after_a_restart(loractl, tiny_model: Path):
    started = loractl.start(tiny_model, "daemon.http=", *FEW)
    assert started.code == 0, started.err
    printed = loractl("env")
    url, key = as_a_shell_has_it(printed.out, "TINKER_BASE_URL", "TINKER_API_KEY")
    state = json.loads(loractl("daemon", "status", "--json").out)

    assert httpx.get(f"{url}/healthz").status_code == 200
    asked = f"{url}/api/v1/get_server_capabilities"
    assert httpx.get(asked, headers={"X-API-Key": key}).status_code == 200
    assert httpx.get(asked, headers={"X-API-Key": f"{key}x"}).status_code == 401
    assert f"HTTP on {url}" in started.err
    assert f'eval "$(loractl env --state-dir {shlex.quote(str(loractl.state_dir))})"' in started.err
    assert "other machines" not in started.err
    assert state["daemon"]["http"] == url
    assert f"http        {url}" in loractl("daemon", "status").out

    alice = loractl("keys", "create", "alice").out.strip()
    assert httpx.get(asked, headers={"X-API-Key": alice}).status_code == 200
    assert loractl("keys", "revoke", "alice").code == 0
    assert httpx.get(asked, headers={"X-API-Key": alice}).status_code == 401

    assert loractl("daemon", "stop").code == 0
    assert loractl("env").code == 2
    assert loractl.start(tiny_model, "daemon.http=", *FEW).code == 0
    assert loractl("env").out == printed.out
    assert loractl("daemon", "stop").code == 0


def test_a_curve_key_file_is_made_listed_and_revoked_with_all_of_its_owners_keys(call, tmp_path: Path):
    place, file = ("--state-dir", tmp_path / "state"), tmp_path / "alice.key"
    call("keys", "create", "alice", *place)

    server = call("keys", "curve", *place)
    made = call("keys", "curve", "--tenant", "alice", "--out", file, *place)
    again = call("keys", "curve", "--tenant", "alice", "--out", file, *place)
    shown = json.loads(call("keys", "curve", "--tenant", "alice", *place).out)
    listed = json.loads(call("keys", "list", "--json", *place).out)
    revoked = call("keys", "revoke", "alice", *place)

    key = json.loads(file.read_text())
    assert (made.code, made.out) == (0, "")
    assert file.stat().st_mode & 0o777 == 0o600
    assert again.code == 2
    assert "name a new file" in again.err
    assert (key["tenant"], key["server"], shown["server"]) == ("alice", *[server.out.strip()] * 2)
    assert [(each["name"], each["for"]) for each in listed] == [("alice", "http"), *[("alice", "tcp")] * 2]
    assert key["secret"] not in (tmp_path / "state" / "curve.json").read_text()
    assert "revoked 3 keys of alice" in revoked.err
    assert json.loads(call("keys", "list", "--json", *place).out) == []
    assert call("keys", "revoke", "alice", *place).code == 2


def test_a_key_whose_file_cannot_be_written_is_not_made(call, tmp_path: Path):
    place, file = ("--state-dir", tmp_path / "state"), tmp_path / "nowhere" / "alice.key"

    outcome = call("keys", "curve", "--tenant", "alice", "--out", file, *place)
    misnamed = call("keys", "curve", "--tenant", "local", "--out", tmp_path / "local.key", *place)

    assert outcome.code == misnamed.code == 2
    assert "cannot write" in outcome.err
    assert json.loads(call("keys", "list", "--json", *place).out) == []
    assert not (tmp_path / "local.key").exists()


def test_a_key_that_has_expired_is_listed_as_such(call, tmp_path: Path):
    keys = Keys(StateLayout(tmp_path))
    keys.create("alice", expires_unix_s=1.0)
    keys.create("ben", expires_unix_s=2.0**33)

    table = call("keys", "list", "--state-dir", tmp_path).out

    assert {line.split()[0] for line in table.splitlines() if "(expired)" in line} == {"alice"}
    assert "ben" in table


@pytest.mark.parametrize("expires", ["soon", "3", "0d", "-1d", "1w", "9999999999d"])
def test_a_key_expires_in_a_time_that_can_be_read(call, tmp_path: Path, expires: str):
    place = ("--state-dir", tmp_path / "state")

    refused = call("keys", "create", "alice", f"--expires={expires}", *place)
    made = call("keys", "create", "alice", "--expires", "30d", *place)

    assert refused.code == 2
    assert "write 30d, 12h or 45m" in refused.err
    assert made.code == 0
    assert json.loads(call("keys", "list", "--json", *place).out)[0]["expires"] != "never"


def test_the_command_line_reaches_a_daemon_without_http_over_tcp_as_its_keys_tenant(
    loractl, call, tiny_model: Path, rows
):
    address = free_address()
    elsewhere = loractl.state_dir / "elsewhere"
    file = loractl.state_dir / "alice.key"
    far = ("--connect", address, "--curve-key", file, "--state-dir", elsewhere)
    refused = loractl.start(tiny_model, f"daemon.listen={address}", *FEW)
    assert loractl("keys", "curve", "--tenant", "alice", "--out", file).code == 0
    started = loractl.start(tiny_model, f"daemon.listen={address}", *FEW)
    assert started.code == 0, started.err

    without_http = loractl("env")
    trained = call("train", rows, "--adapter", "pirate", "--rank", "4", "--max-steps", "1", *far)
    listed = json.loads(call("adapters", "list", "--json", *far).out)
    everybodys = call("adapters", "list", "--all", *far)
    exported = call("adapters", "export", "pirate", loractl.state_dir / "out", *far)
    local = loractl("adapters", "list", "--json")
    shown = loractl("daemon", "status")
    removed = call("adapters", "rm", "pirate", *far)
    loractl("keys", "revoke", "alice")
    ended = call("daemon", "status", *far)
    stopped = loractl("daemon", "stop")

    assert (refused.code, "tcp needs CURVE keys" in refused.err) == (2, True)
    assert "HTTP" not in started.err
    assert (without_http.code, without_http.out) == (2, "")
    assert "serves no HTTP" in without_http.err
    assert "http        off" in shown.out
    # Without a sampler nobody can receive what is published.
    assert "pirate" in trained.err + trained.out
    assert [(each["name"], each["tenant"]) for each in listed] == [("pirate", "alice")]
    assert json.loads(local.out) == []
    assert (everybodys.code, exported.code, removed.code) == (2, 2, 0)
    assert "on the daemon's machine" in exported.err
    assert (ended.code, "does not take this key" in ended.err) == (2, True)
    assert stopped.code == 0
