"""Files of keys, damaged: whoever reads them is told so, and no key of a damaged file lets anybody in by chance."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from loractl.bus.curve import CurveKeys, read_client_key
from loractl.bus.errors import InvalidConfig, InvalidName, InvalidRequest, StorageFailed
from loractl.bus.keys import Keys, ensure_local_key
from loractl.bus.layout import StateLayout
from loractl.tests.fuzz.checks import check_told
from loractl.tests.fuzz.source import Source
from loractl.tests.fuzz.subject import Play, Subject


@contextmanager
def _open(directory: Path) -> Iterator[Play]:
    layout = StateLayout(directory)
    own = {Keys(layout).create("ann"), ensure_local_key(layout)}
    client = directory / "client.curve"
    client.write_text(_written(CurveKeys(layout).create("ann")))
    client.chmod(0o600)
    files = [layout.keys, layout.local_key, layout.curve_clients, layout.curve_key, client]
    whole = {file: file.read_bytes() for file in files}

    def play(source: Source) -> None:
        for file, content in whole.items():
            file.write_bytes(content)
        file = source.choice(files)
        file.write_bytes(_damaged(source, whole[file]))
        key = source.choice(("", "tml-x", "\ud800", *sorted(own)))
        _told(lambda: Keys(layout).tenant_of(key))
        assert _told(lambda: Keys(layout).tenant_of("tml-" + "x" * 43)) is None
        _told(lambda: Keys(layout).listed())
        _told(lambda: CurveKeys(layout).tenant_of("x" * 40))
        _told(lambda: CurveKeys(layout).listed())
        _told(lambda: CurveKeys(layout).server())
        _told(lambda: read_client_key(client))
        if source.one_in(8):
            _told(lambda: ensure_local_key(layout))
            _told(lambda: Keys(layout).create("ben"))
            _told(lambda: CurveKeys(layout).create("ben"))

    yield play


KEYS = Subject(name="keys", share=20, open=_open)


def _written(key: object) -> str:
    return json.dumps({name: getattr(key, name) for name in ("server", "public", "secret")})


def _damaged(source: Source, content: bytes) -> bytes:
    if source.one_in(3) or not content.startswith(b"{"):
        return source.damaged(content, (b"\xff", b"[" * 3000, b'"\\ud800"', b"null"))
    return source.json_text(source.changed(json.loads(content)))


def _told(action: Callable[[], object]) -> object:
    try:
        return action()
    except (StorageFailed, InvalidConfig, InvalidName, InvalidRequest) as error:
        check_told(error)
        return None
