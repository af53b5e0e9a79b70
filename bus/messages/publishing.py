"""Publishing: the receipt, the version table, and the events, which are hints with a gapless number:
the table is the truth.
"""

from dataclasses import dataclass
from typing import ClassVar

from ..ids import AdapterId
from .base import EngineName, Message
from .descriptions import VersionRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionWritten(Message):
    """The trainer's answer to PublishAdapter. The broker turns it into a `Receipt`."""

    kind: ClassVar[str] = "version_written"
    record: VersionRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(Message):
    """What a client reads after PublishAdapter: the version is being served, by whom, how exactly.

    sampler and engine are empty when the daemon runs without samplers. probe_max_abs_diff: largest
    difference between trainer and sampler logprobs on the probe, None without a sampler.
    """

    kind: ClassVar[str] = "receipt"
    record: VersionRecord
    sampler: str
    engine: str
    engine_reason: str
    modules_bound: int
    probe_max_abs_diff: float | None
    waited_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionTable(Message):
    kind: ClassVar[str] = "version_table"
    last_event: int
    records: tuple[VersionRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPublished(Message):
    kind: ClassVar[str] = "adapter_published"
    number: int
    record: VersionRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRetired(Message):
    """Samplers finish what is in flight on it, remove it, and report `VersionReleased`."""

    kind: ClassVar[str] = "version_retired"
    number: int
    adapter: AdapterId
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDeleted(Message):
    kind: ClassVar[str] = "adapter_deleted"
    number: int
    adapter: AdapterId


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionServed(Message):
    """A sampler has loaded this version, or says why it cannot (`error` not empty).

    Said after every load, also the later ones. probe_max_abs_diff: NaN without a probe, or with an error.
    """

    kind: ClassVar[str] = "version_served"
    actor: str
    adapter: AdapterId
    version: int
    engine: EngineName
    engine_reason: str
    modules_bound: int
    probe_max_abs_diff: float
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionReleased(Message):
    """A sampler has let go of a retired version."""

    kind: ClassVar[str] = "version_released"
    actor: str
    adapter: AdapterId
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DropVersion(Message):
    """Broker to trainer: no sampler holds this version any more; delete its directory."""

    kind: ClassVar[str] = "drop_version"
    adapter: AdapterId
    version: int
