"""Files that people hand in: whatever is in them, they are refused by name."""

from collections.abc import Callable
from pathlib import Path

import pytest
from loractl.bus.config import load_config
from loractl.bus.curve import CurveKeys, read_client_key
from loractl.bus.errors import InvalidConfig, LoractlError
from loractl.bus.keys import Keys
from loractl.bus.layout import StateLayout

DEEP = 20_000
HOSTILE: dict[str, bytes] = {
    "lists without end": b"a = " + b"[" * DEEP + b"]" * DEEP,
    "a file without end": b"# " + b"x" * 10_000_000,
    "tables without end": b"a = " + b"{b = " * DEEP,
    "a dotted key without end": b".".join([b"a"] * 3_000) + b" = 1",
    "a number without end": b"a = " + b"9" * DEEP,
    "no text": b"\xff\xfe\x00",
    "nothing closed": b'trainer = "',
    "a table where a number belongs": b"[trainer.slots]\na = 1",
    "a list where a number belongs": b"[trainer]\nslots = [1]",
    "a number that is none": b"[trainer]\nsink_after_s = nan",
    "a number beyond the machine's": b"[trainer]\nslots = 99999999999999999999999999",
    "a date": b"[trainer]\nslots = 1979-05-27",
}
JSON: dict[str, bytes] = {
    "lists without end": b'{"keys": ' + b"[" * DEEP,
    "objects without end": b'{"x":' * DEEP,
    "an unknown key without end": b'{"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_settings_file_that_cannot_be_read_is_refused(tmp_path: Path, data: bytes):
    (tmp_path / "loractl.toml").write_bytes(data)

    with pytest.raises(InvalidConfig) as raised:
        load_config(state_dir=str(tmp_path), environ={})

    assert raised.value.message.isprintable() or "\n" in raised.value.message


@pytest.mark.parametrize("data", JSON.values(), ids=JSON.keys())
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("keys.json", lambda layout: Keys(layout).tenant_of("tml-x")),
        ("curve.json", lambda layout: CurveKeys(layout).tenant_of("x")),
        ("curve.key", lambda layout: CurveKeys(layout).server()),
        ("client.key", lambda layout: read_client_key(layout.root / "client.key")),
    ],
)
def test_a_key_file_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, read: Callable[[StateLayout], object], data: bytes
):
    (tmp_path / name).write_bytes(data)
    (tmp_path / name).chmod(0o600)

    with pytest.raises(LoractlError):
        read(StateLayout(tmp_path))
