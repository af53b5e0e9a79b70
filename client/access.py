"""What clients of the service over HTTP need: API keys, the environment of the SDK, the tokenizer.

Each function is a command's work and returns its exit code; stdout gets data, stderr gets talk.
"""

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from ..bus.config import Config, hub_cache
from ..bus.errors import ActorRestarting, NotSupported
from ..bus.keys import KeyRecord, Keys, ensure_local_key
from ..bus.layout import StateLayout
from ..bus.listening import url_from_here
from ..bus.messages import DaemonStatus
from .service import connect
from .terminal import data_console, show_json, show_table, talk_console
from .tokenizer_cache import name_that_clients_ask_for, write_tokenizer_cache


def create_key(config: Config, name: str) -> int:
    key = Keys(_layout(config)).create(name)
    data_console().print(key)
    talk_console().print(f"this is the key of {name}, shown only now: it is what they set as TINKER_API_KEY")
    return 0


def list_keys(config: Config, *, as_json: bool) -> int:
    """Without the keys themselves, which nobody can read again."""
    records = Keys(_layout(config)).listed()
    if as_json:
        show_json(data_console(), [_facts(record) for record in records])
    elif records:
        rows = [tuple(_facts(record).values()) for record in records]
        show_table(data_console(), ("NAME", "KEY", "ID", "CREATED"), rows)
    else:
        talk_console().print("no keys yet: `loractl keys create NAME` makes one")
    return 0


def revoke_key(config: Config, name: str) -> int:
    Keys(_layout(config)).revoke(name)
    talk_console().print(f"revoked the key of {name}; what was made with it stays")
    return 0


def show_environment(config: Config) -> int:
    """What a shell evaluates so that the SDK finds the daemon, as its local user."""
    with connect(config=config) as service:
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
    created = datetime.fromtimestamp(record.created_unix_s, UTC).astimezone()
    return {
        "name": record.name,
        "key": f"{record.prefix}…",
        "id": record.key_id,
        "created": created.isoformat(sep=" ", timespec="seconds"),
    }


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
