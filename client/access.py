"""What clients of the service need: API keys, key files for tcp, the SDK's environment, the tokenizer.

Each function is a command's work and returns its exit code; stdout gets data, stderr gets talk.
"""

import contextlib
import hashlib
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import msgspec

from ..bus.config import Config, hub_cache
from ..bus.curve import ClientKey, CurveKeys, CurveRecord
from ..bus.errors import ActorRestarting, InvalidRequest, NotSupported
from ..bus.keys import KeyRecord, Keys, ensure_local_key
from ..bus.layout import StateLayout
from ..bus.listening import url_from_here
from ..bus.messages import DaemonStatus
from .service import connect
from .terminal import data_console, show_json, show_table, talk_console
from .tokenizer_cache import name_that_clients_ask_for, write_tokenizer_cache

_UNITS_S = {"m": 60, "h": 3600, "d": 24 * 3600}
_MOST_UNITS = 100_000


def create_key(config: Config, name: str, expires: str | None) -> int:
    key = Keys(_layout(config)).create(name, expires_unix_s=_moment(expires))
    data_console().print(key)
    talk_console().print(f"this is the key of {name}, shown only now: it is what they set as TINKER_API_KEY")
    return 0


def create_curve_key(config: Config, tenant: str | None, out: Path | None, expires: str | None) -> int:
    """tenant None: the daemon's own keys only, and its public one is shown."""
    curve = CurveKeys(_layout(config))
    if tenant is None:
        data_console().print(curve.ensure_server().public, markup=False, highlight=False)
        talk_console().print(
            "this is the daemon's public key: `loractl keys curve --tenant NAME` makes clients'"
        )
        return 0
    ends = _moment(expires)
    if out is None:
        key = curve.create(tenant, expires_unix_s=ends)
        data_console().print(_key_text(key), markup=False, highlight=False)
    else:
        # The file comes first: a key whose secret nobody has would stay in the list.
        with _new_private(out) as opened:
            opened.write(_key_text(curve.create(tenant, expires_unix_s=ends)) + "\n")
    where = out or "a file that only its owner may read (0600)"
    talk_console().print(
        f"this is the key of {tenant}, shown only now: keep it in {where}, and use it with "
        "--connect tcp://HOST:PORT --curve-key FILE"
    )
    return 0


def list_keys(config: Config, *, as_json: bool) -> int:
    """Without the keys themselves, which nobody can read again."""
    api, curve = Keys(_layout(config)).listed(), CurveKeys(_layout(config)).listed()
    facts = [*map(_facts, api), *map(_curve_facts, curve)]
    if as_json:
        show_json(data_console(), facts)
    elif facts:
        ends = [each.expires_unix_s for each in api] + [each.expires_unix_s for each in curve]
        rows = [_row(each, end) for each, end in zip(facts, ends, strict=True)]
        show_table(data_console(), ("NAME", "KEY", "ID", "CREATED", "EXPIRES", "FOR"), rows)
    else:
        talk_console().print("no keys yet: `loractl keys create NAME` makes one")
    return 0


def revoke_key(config: Config, name: str) -> int:
    """All keys of a name: who revokes one wants its owner out."""
    ended = CurveKeys(_layout(config)).revoke(name)
    keys = Keys(_layout(config))
    if not ended or any(each.name == name for each in keys.listed()):
        keys.revoke(name)
        ended += 1
    what = "the key" if ended == 1 else f"{ended} keys"
    talk_console().print(
        f"revoked {what} of {name}; what was made with {'it' if ended == 1 else 'them'} stays"
    )
    return 0


def show_environment(config: Config) -> int:
    """What a shell evaluates so that the SDK finds the daemon, as its local user."""
    if config.client.connect:
        raise NotSupported(
            f"{config.client.connect} is another daemon than this machine's, whose local key would not open it: "
            "ask its owner for an API key and its URL"
        )
    with connect(config=config, patience_s=0.0) as service:
        url = _url(service.status())
    _show_exports({"TINKER_BASE_URL": url, "TINKER_API_KEY": ensure_local_key(_layout(config))})
    return 0


def cache_tokenizer(name: str, directory: Path, cache: Path | None) -> int:
    """Under the model's own name, and under the one that the SDK looks up where that is another."""
    cache = (cache or hub_cache()).expanduser().absolute()
    for each in dict.fromkeys((name, name_that_clients_ask_for(name))):
        snapshot = write_tokenizer_cache(each, directory, cache)
        talk_console().print(f"{each} is now the tokenizer in {snapshot}")
    _show_exports({"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"})
    return 0


def _layout(config: Config) -> StateLayout:
    return StateLayout(Path(config.state_dir))


def _facts(record: KeyRecord) -> dict[str, str]:
    return {
        "name": record.name,
        "key": f"{record.prefix}…",
        "id": record.key_id,
        "created": _shown(record.created_unix_s),
        "expires": _shown(record.expires_unix_s),
        "for": "http",
    }


def _curve_facts(record: CurveRecord) -> dict[str, str]:
    """A CURVE key is listed by its public half, which is no secret."""
    return {
        "name": record.name,
        "key": f"{record.public[:10]}…",
        "id": hashlib.sha256(record.public.encode()).hexdigest()[:16],
        "created": _shown(record.created_unix_s),
        "expires": _shown(record.expires_unix_s),
        "for": "tcp",
    }


def _row(facts: dict[str, str], expires_unix_s: float | None) -> tuple[str, ...]:
    expired = expires_unix_s is not None and time.time() >= expires_unix_s
    return tuple({**facts, "expires": facts["expires"] + (" (expired)" if expired else "")}.values())


def _shown(unix_s: float | None) -> str:
    if unix_s is None:
        return "never"
    return datetime.fromtimestamp(unix_s, UTC).astimezone().isoformat(sep=" ", timespec="seconds")


def _moment(expires: str | None) -> float | None:
    """The end of a time from now, as 30d, 12h, 45m.

    Raises:
        InvalidRequest: it has another form.
    """
    if expires is None:
        return None
    count, unit = expires[:-1], expires[-1:]
    if not (count.isascii() and count.isdecimal() and unit in _UNITS_S and 0 < int(count[:9]) <= _MOST_UNITS):
        raise InvalidRequest(f"--expires {expires[:40]!r}: write 30d, 12h or 45m")
    return time.time() + int(count) * _UNITS_S[unit]


def _key_text(key: ClientKey) -> str:
    return msgspec.json.format(msgspec.json.encode(key), indent=2).decode()


@contextlib.contextmanager
def _new_private(file: Path) -> Iterator[TextIO]:
    """A new file, which vanishes if the block raises. Raises InvalidRequest: there is one, or it cannot be
    written."""
    try:
        opened = os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")
    except FileExistsError as error:
        raise InvalidRequest(f"{file} exists: name a new file") from error
    except OSError as error:
        raise InvalidRequest(f"cannot write {file}: {(error.strerror or str(error)).lower()}") from error
    try:
        with opened:
            yield opened
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _url(status: DaemonStatus) -> str:
    """Raises:
    NotSupported: the daemon serves no HTTP.
    ActorRestarting: it does not yet, or not at the moment.
    """
    bridge = next((actor for actor in status.actors if actor.role == "bridge"), None)
    if bridge is None:
        raise NotSupported(
            f"the daemon on {status.state_dir} serves no HTTP: stop it, and start it without `--http none`"
        )
    if bridge.phase != "ready":
        raise ActorRestarting(
            f"HTTP is not served at the moment, the bridge is {bridge.phase}: `loractl daemon logs` tells more"
        )
    return url_from_here(bridge.details)


def _show_exports(variables: Mapping[str, str]) -> None:
    console = data_console()
    for name, value in variables.items():
        console.print(f"export {name}={shlex.quote(value)}")
