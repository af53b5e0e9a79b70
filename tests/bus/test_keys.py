"""API keys: shown once, hashed at rest, seen by a running bridge as soon as they change."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from loractl.bus.config import subprocess_environment
from loractl.bus.errors import InvalidName, InvalidRequest, StorageFailed
from loractl.bus.ids import LOCAL_TENANT
from loractl.bus.keys import Keys, ensure_local_key
from loractl.bus.layout import StateLayout

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def layout(tmp_path: Path) -> StateLayout:
    return StateLayout(tmp_path / "state")


@pytest.fixture
def keys(layout: StateLayout) -> Keys:
    return Keys(layout)


def test_a_key_belongs_to_the_tenant_of_its_name(keys: Keys):
    key = keys.create("alice")

    assert key.startswith("tml-")
    assert len(key) >= 36
    assert keys.tenant_of(key) == "alice"


@pytest.mark.parametrize("key", ["", "tml-", "tml-" + "x" * 43, "\u00e9\u00fc", "tml-\ud800"])
def test_a_key_that_nobody_made_is_nobodys(keys: Keys, key: str):
    keys.create("alice")

    assert keys.tenant_of(key) is None
    assert keys.describe(key) is None


def test_without_a_file_there_are_no_keys(keys: Keys, layout: StateLayout):
    assert keys.tenant_of("tml-x") is None
    assert keys.listed() == []
    assert not layout.root.exists()


def test_the_file_holds_no_key_and_is_for_its_owner_alone(keys: Keys, layout: StateLayout):
    key = keys.create("alice")

    assert key.removeprefix("tml-") not in layout.keys.read_text()
    assert stat.S_IMODE(layout.keys.stat().st_mode) == 0o600
    assert [file.name for file in layout.root.iterdir()] == ["keys.json"]


def test_a_list_tells_keys_apart_without_showing_them(keys: Keys):
    made = {name: keys.create(name) for name in ("bob", "alice")}

    listed = keys.listed()

    assert [record.name for record in listed] == ["alice", "bob"]
    for record in listed:
        assert made[record.name].startswith(record.prefix)
        assert len(record.prefix) == 10
        assert record.key_id == keys.describe(made[record.name]).key_id
    assert len({record.key_id for record in listed}) == 2


def test_what_another_process_changes_is_seen_at_once(layout: StateLayout):
    bridge, command = Keys(layout), Keys(layout)
    seen = []
    for _ in range(50):
        key = command.create("alice")
        seen.append(bridge.tenant_of(key))
        command.revoke("alice")
        seen.append(bridge.tenant_of(key))

    assert seen == ["alice", None] * 50


def test_a_removed_file_ends_all_keys(keys: Keys, layout: StateLayout):
    key = keys.create("alice")
    assert keys.tenant_of(key) == "alice"

    layout.keys.unlink()

    assert keys.tenant_of(key) is None


def test_a_name_used_again_is_the_same_tenant_with_another_key(keys: Keys):
    first = keys.create("alice")
    keys.revoke("alice")
    second = keys.create("alice")

    assert first != second
    assert (keys.tenant_of(first), keys.tenant_of(second)) == (None, "alice")


def test_a_name_has_one_key(keys: Keys):
    key = keys.create("alice")

    with pytest.raises(InvalidRequest, match="keys revoke alice"):
        keys.create("alice")
    assert keys.tenant_of(key) == "alice"


@pytest.mark.parametrize("name", ["", "a b", "../a", "local", "x" * 129])
def test_names_that_are_no_tenants_are_refused(keys: Keys, name: str):
    with pytest.raises(InvalidName):
        keys.create(name)


def test_only_a_key_that_is_there_can_be_revoked(keys: Keys):
    with pytest.raises(InvalidRequest, match="no key named 'nobody'"):
        keys.revoke("nobody")


def test_the_local_users_key_is_made_once_and_kept_for_that_user(keys: Keys, layout: StateLayout):
    key = ensure_local_key(layout)

    assert ensure_local_key(layout) == key
    assert layout.local_key.read_text() == f"{key}\n"
    assert stat.S_IMODE(layout.local_key.stat().st_mode) == 0o600
    assert keys.tenant_of(key) == LOCAL_TENANT


@pytest.mark.parametrize("lost", ["removed", "torn", "empty", "not text"])
def test_a_lost_local_key_is_made_anew_and_the_old_one_ends(keys: Keys, layout: StateLayout, lost: str):
    other = keys.create("alice")
    old = ensure_local_key(layout)
    layout.local_key.unlink()
    if lost != "removed":
        layout.local_key.write_bytes({"torn": old[:20].encode(), "empty": b"", "not text": b"\xff\xfe"}[lost])

    new = ensure_local_key(layout)

    assert (keys.tenant_of(old), keys.tenant_of(new), keys.tenant_of(other)) == (None, LOCAL_TENANT, "alice")


def test_a_revoked_local_key_is_replaced_when_it_is_needed_next(keys: Keys, layout: StateLayout):
    old = ensure_local_key(layout)

    keys.revoke("local")

    assert keys.tenant_of(old) is None
    assert not layout.local_key.exists()
    assert keys.tenant_of(ensure_local_key(layout)) == LOCAL_TENANT


FOREIGN = [
    "",
    "{",
    "[]",
    '{"keys": 7}',
    '{"keys": [{"name": "alice"}]}',
    "\udcff",
    '{"keys": [{"name": "\udcff"}]}',
]


@pytest.mark.parametrize("text", FOREIGN)
def test_a_file_that_loractl_did_not_write_opens_nothing_and_is_named(
    keys: Keys, layout: StateLayout, text: str
):
    key = keys.create("alice")
    layout.keys.write_bytes(text.encode("utf-8", "surrogateescape"))

    for attempt in (
        lambda: keys.tenant_of(key),
        lambda: keys.create("bob"),
        lambda: ensure_local_key(layout),
    ):
        with pytest.raises(StorageFailed, match=r"keys\.json holds no API keys"):
            attempt()


def test_a_state_directory_that_is_a_file_is_named(tmp_path: Path):
    (tmp_path / "state").write_text("")

    with pytest.raises(StorageFailed, match="state"):
        Keys(StateLayout(tmp_path / "state")).create("alice")


def test_keys_made_at_the_same_time_are_all_kept(layout: StateLayout):
    script = (
        "import sys; from pathlib import Path; from loractl.bus.keys import Keys, ensure_local_key;"
        "from loractl.bus.layout import StateLayout; layout = StateLayout(Path(sys.argv[1]));"
        "[Keys(layout).create(f'{sys.argv[2]}-{i}') for i in range(20)]; print(ensure_local_key(layout))"
    )
    environment = subprocess_environment({"PYTHONPATH": os.fspath(ROOT / ".pkg")})
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, layout.root, name],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b", "c")
    ]
    local = {writer.communicate(timeout=60)[0] for writer in writers}

    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert len(local) == 1
    assert len(Keys(layout).listed()) == 61
    assert len(json.loads(layout.keys.read_text())["keys"]) == 61


def test_a_change_is_on_disk_with_its_name_before_it_is_told(keys: Keys, layout: StateLayout, monkeypatch):
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda opened: synced.append(Path(f"/proc/self/fd/{opened}").readlink()))

    keys.create("alice")

    assert synced == [layout.keys.with_name(f".{layout.keys.name}.new"), layout.root]


def test_a_key_that_expired_is_nobodys_and_its_name_is_free(layout: StateLayout):
    now = [100.0]
    keys = Keys(layout, clock=lambda: now[0])
    key = keys.create("alice", expires_unix_s=150.0)
    assert keys.tenant_of(key) == "alice"

    now[0] = 150.0

    assert keys.tenant_of(key) is None
    assert keys.describe(key) is None
    assert [record.expired(now[0]) for record in keys.listed()] == [True]
    assert keys.tenant_of(keys.create("alice")) == "alice"
    assert len(keys.listed()) == 1


def test_files_of_before_keys_could_expire_are_read(keys: Keys, layout: StateLayout):
    key = keys.create("alice")
    data = json.loads(layout.keys.read_text())
    del data["keys"][0]["expires_unix_s"]
    layout.keys.write_text(json.dumps(data))

    assert keys.tenant_of(key) == "alice"


def test_a_key_is_looked_up_by_what_nobody_outside_can_choose(layout: StateLayout):
    """Two processes look the same key up under different tags, so that timing teaches nothing of its hash."""
    first, second = Keys(layout), Keys(layout)
    key = first.create("alice")
    assert first.tenant_of(key) == second.tenant_of(key) == "alice"

    assert not {*first._by_tag} & {*second._by_tag}


@pytest.mark.parametrize("at", [4, 5, 20, -1])
def test_a_key_that_differs_in_one_character_is_nobodys(keys: Keys, at: int):
    key = keys.create("alice")
    other = "A" if key[at] != "A" else "B"
    wrong = key[:at] + other + key[at:][1:]

    assert keys.tenant_of(wrong) is None
