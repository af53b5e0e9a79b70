"""What the bridge remembers about its users' work: sessions, training runs, checkpoints, samplers.

Every record has an id, the tenant that owns it, the id of what it belongs to (`parent`), and when it
was made. Bits and weights lie with the trainer; these say which is which.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ..bus.ids import AdapterId, LaneId, TenantId
from ..bus.messages import LoraSpec

# Any JSON value: what a user attaches is kept as it came.
Json = Any
CheckpointKind = Literal["training", "sampler", "external"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """A client's session. status: "finished" was said by the client, "expired" was noticed by us.

    reason: the client's success, errored or interrupted.
    """

    table: ClassVar[str] = "sessions"
    id: str
    tenant: TenantId
    parent: str = ""
    created_unix_s: float
    last_seen_unix_s: float
    status: Literal["active", "finished", "expired"] = "active"
    reason: str = ""
    detail: str = ""
    tags: tuple[str, ...] = ()
    user_metadata: Mapping[str, Json] = field(default_factory=dict)
    display_name: str | None = None
    project: str | None = None
    sdk_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A training run, `model_id` in Tinker's words; its id is also its adapter's name on the bus.

    parent: its session; empty when it belongs to none, and stays until it is removed. lane: the
    client's ordered lane on the adapter; Tinker's seq_id is the lane's seq. state "lost": the trainer
    restarted and what was not saved is gone; "unloaded": its session ended, checkpoints are there;
    "deleted": so is the adapter. made_by: the request that made it, so that the same one finds it again.
    """

    table: ClassVar[str] = "runs"
    id: str
    tenant: TenantId
    parent: str
    created_unix_s: float
    last_request_unix_s: float
    adapter: AdapterId
    lane: LaneId
    base_model: str
    lora: LoraSpec
    user_metadata: Mapping[str, Json] = field(default_factory=dict)
    made_by: str = ""
    state: Literal["live", "lost", "unloaded", "deleted"] = "live"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """A checkpoint of a run; its id is its tinker:// path, its parent the run.

    training: `name` is the checkpoint's name with the trainer. sampler: published version `version`
    of `adapter`, held for us. external: files under `<state>/exports/<token>/`. made_by: the work that
    made it, so that the same work, run again, finds it. gone: its files were not there when they were last
    looked for.
    """

    table: ClassVar[str] = "checkpoints"
    id: str
    tenant: TenantId
    parent: str
    created_unix_s: float
    kind: CheckpointKind
    name: str
    adapter: AdapterId
    base_model: str
    lora: LoraSpec
    version: int = 0
    token: str = ""
    size_bytes: int = 0
    public: bool = False
    expires_unix_s: float | None = None
    user_metadata: Mapping[str, str] = field(default_factory=dict)
    made_by: str = ""
    gone: bool = False

    @property
    def checkpoint_id(self) -> str:
        """As the REST answers name it: `weights/000010`."""
        return f"{SEGMENTS[self.kind]}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerRecord:
    """A sampling session; its parent is its session.

    adapter None is the base model. owner: whose adapter it is, which may be another tenant's if that
    made the checkpoint public. run: whose unnamed snapshot it is, else empty. inflight: it moves on
    with its run's later inflight snapshots. version: -1 when it went, 0 for the base model and for a
    training checkpoint that was not published yet. clones: further clients that joined. made_by: as of
    checkpoints. failures: how often its publication failed.
    """

    table: ClassVar[str] = "samplers"
    id: str
    tenant: TenantId
    parent: str
    created_unix_s: float
    base_model: str
    model_path: str | None = None
    adapter: AdapterId | None = None
    version: int = 0
    owner: TenantId | None = None
    run: str = ""
    inflight: bool = False
    clones: int = 0
    made_by: str = ""
    failures: int = 0


Record = SessionRecord | RunRecord | CheckpointRecord | SamplerRecord

SEGMENTS: Mapping[CheckpointKind, str] = {
    "training": "weights",
    "sampler": "sampler_weights",
    "external": "external_weights",
}
_KINDS: Mapping[str, CheckpointKind] = {segment: kind for kind, segment in SEGMENTS.items()}


def tinker_path(run: str, kind: CheckpointKind, name: str) -> str:
    return f"tinker://{run}/{SEGMENTS[kind]}/{name}"


def parsed_path(path: str) -> tuple[str, CheckpointKind, str] | None:
    """Run, kind and name of a tinker:// path; None for anything else."""
    scheme, _, rest = path.partition("://")
    parts = rest.split("/")
    if scheme != "tinker" or len(parts) != 3 or parts[1] not in _KINDS or not parts[0] or not parts[2]:
        return None
    return parts[0], _KINDS[parts[1]], parts[2]


def run_id(session: str, number: int) -> str:
    """The SDK derives this id by itself, so it is fixed."""
    return f"{session}:train:{number}"


def sampler_id(session: str, number: int) -> str:
    return f"{session}:sample:{number}"
