"""What the daemon says about itself."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..bus.config import Config
from ..bus.errors import AnotherBase
from ..bus.messages import DaemonStatus, Pong
from .chaos import Chaos
from .dispatch import Dispatch
from .publishing import Publishing


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which daemon this is. started: when its sockets opened, on the clock that `now` reads. chaos: None
    where there is none. disk: the bytes that are free for the journal, and those that it keeps; None without one."""

    version: str
    pid: int
    started: float
    chaos: Chaos | None = None
    disk: Callable[[], tuple[int, int]] | None = None

    def pong(self, now: float) -> Pong:
        return Pong(daemon_version=self.version, uptime_s=now - self.started)


def daemon_status(
    identity: Identity, config: Config, dispatch: Dispatch, publishing: Publishing, now: float
) -> DaemonStatus:
    bridges = [actor for actor in dispatch.actors if actor.role == "bridge"]
    put_off = dispatch.recovery.all_put_off()
    free_bytes, kept_bytes = identity.disk() if identity.disk is not None else (0, 0)
    return DaemonStatus(
        daemon_version=identity.version,
        pid=identity.pid,
        uptime_s=now - identity.started,
        state_dir=config.state_dir,
        base_model=config.model.name,
        # Port 0 or "auto" was asked for where a ready bridge says which one it took.
        http=next(
            (each.details for each in bridges if each.phase == "ready"), config.daemon.http if bridges else ""
        ),
        actors=tuple(actor.status(now, config.daemon) for actor in dispatch.actors),
        adapters=publishing.adapters,
        versions=len(publishing.versions),
        last_event=publishing.versions.last_event,
        put_off=put_off.total(),
        another_base=put_off[AnotherBase.code],
        chaos=identity.chaos.summary if identity.chaos is not None else "",
        model_path=str(Path(config.model.path or config.model.name).absolute()),
        disk_free_bytes=free_bytes,
        disk_kept_bytes=kept_bytes,
    )
