"""Where everything lies under the state directory. No other file builds these paths.

<state>/loractl.toml       optional settings
<state>/run/               0700: sockets, lock, pid, the config handed to actors
<state>/logs/<actor>.log   JSON lines, and <actor>.out for what libraries print; older ones in .old
<state>/adapters/<id>/     one directory per adapter: adapter.json, checkpoints/<digest of name>/,
                           snapshots/<number>/
<state>/journal.sqlite     every request that changed something, and its outcome; see `daemon/journal`
<state>/versions/<id>/<n>/ immutable published versions: PEFT files, version.json
<state>/spill/             training states that found no room in memory; wiped when a trainer starts
<state>/training/<id>.json the settings of the `loractl train` run that made an adapter
<state>/keys.json          API keys, hashed, and whose they are
<state>/local.key          0600: the local user's own API key, as `loractl env` prints it
<state>/curve.key          0600: the daemon's own CURVE keys, for tcp
<state>/curve.json         whose CURVE keys may connect over tcp
<state>/http.port          the port that "auto" HTTP was served on last
<state>/tinker.sqlite      the bridge's sessions, training runs, checkpoints and samplers
<state>/futures.sqlite     what the bridge was asked for over HTTP and had not ended, and results
<state>/exports/<token>/   files behind expiring download addresses
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from .ids import AdapterId


@dataclass(frozen=True, slots=True)
class StateLayout:
    root: Path

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def client_socket(self) -> str:
        return f"ipc://{self.run / 'client.sock'}"

    @property
    def actor_socket(self) -> str:
        return f"ipc://{self.run / 'actor.sock'}"

    @property
    def event_socket(self) -> str:
        return f"ipc://{self.run / 'events.sock'}"

    @property
    def lock(self) -> Path:
        return self.run / "daemon.lock"

    @property
    def pid(self) -> Path:
        return self.run / "daemon.pid"

    @property
    def config(self) -> Path:
        return self.run / "config.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def versions(self) -> Path:
        return self.root / "versions"

    @property
    def spill(self) -> Path:
        return self.root / "spill"

    def adapter(self, adapter: AdapterId) -> Path:
        return self.adapters / adapter

    def checkpoint(self, adapter: AdapterId, name: str) -> Path:
        """A client's checkpoint name never becomes a path: its digest does."""
        digest = hashlib.sha256(name.encode()).hexdigest()[:32]
        return self.adapter(adapter) / "checkpoints" / digest

    def version(self, adapter: AdapterId, number: int) -> Path:
        return self.versions / adapter / str(number)

    def snapshots(self, adapter: AdapterId) -> Path:
        """Training states that the journal goes on from, by number."""
        return self.adapter(adapter) / "snapshots"

    @property
    def journal(self) -> Path:
        return self.root / "journal.sqlite"

    @property
    def in_hand(self) -> Path:
        """The requests that the trainer has in hand; read when it died."""
        return self.run / "in_hand"

    @property
    def keys(self) -> Path:
        return self.root / "keys.json"

    @property
    def local_key(self) -> Path:
        return self.root / "local.key"

    @property
    def curve_key(self) -> Path:
        return self.root / "curve.key"

    @property
    def curve_clients(self) -> Path:
        return self.root / "curve.json"

    @property
    def http_port(self) -> Path:
        return self.root / "http.port"

    @property
    def tinker_store(self) -> Path:
        return self.root / "tinker.sqlite"

    @property
    def tinker_futures(self) -> Path:
        return self.root / "futures.sqlite"

    @property
    def exports(self) -> Path:
        return self.root / "exports"

    def training_record(self, adapter: AdapterId) -> Path:
        return self.root / "training" / f"{adapter}.json"
