"""A bus whose other end keeps adapters in a dict: what the bridge's own rules are tested against.

It answers as trainer and broker do, at once, and keeps what it was asked for. Under a request id that it
knows it answers what it answered first, as the broker's journal does.
"""

from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np
from loractl.bus.codec import encode
from loractl.bus.errors import (
    ActorUnavailable,
    AdapterExists,
    AdapterNotFound,
    CheckpointNotFound,
    LoractlError,
    RequestConflict,
    VersionNotFound,
    error_from_code,
)
from loractl.bus.ids import AdapterId, LaneId, RequestId, TenantId, new_request_id
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    ActorStatus,
    AdapterCreated,
    AdapterDetails,
    AdapterList,
    CheckpointSaved,
    CreateAdapter,
    DaemonStatus,
    DeleteAdapter,
    DeleteCheckpoint,
    DeleteVersion,
    DescribeModel,
    Done,
    Envelope,
    ExportWeights,
    GetStatus,
    GetVersions,
    LaneOpened,
    ListAdapters,
    ListTenants,
    LoadCheckpoint,
    LoadVersion,
    LoraSpec,
    Message,
    ModelDescribed,
    ModelDetails,
    OpenLane,
    PublishAdapter,
    Receipt,
    RefuseOperation,
    Sample,
    SaveCheckpoint,
    StateLoaded,
    TenantList,
    TenantUsage,
    UnloadAdapter,
    Usage,
    VersionRecord,
    VersionTable,
    WaitCause,
    WeightsExported,
)

MODEL = ModelDetails(
    name="tiny",
    path="/models/tiny",
    family="qwen3",
    vocab_size=512,
    max_sequence_tokens=64,
    parameters=1000,
    dtype="float32",
    weights="0123",
)
SAFETENSORS = bytes(range(256)) * 8


@dataclass
class Adapter:
    details: AdapterDetails
    loaded: bool = True
    checkpoints: set[str] = field(default_factory=set)
    versions: dict[int, VersionRecord] = field(default_factory=dict)


class InMemoryBus:
    """asked: every message that came, with its tenant. given_up: whether the trainer was, which answers for
    all that is asked of it, but to those who ask who is there, or for a sample. layout: where checkpoints and
    versions leave files; None: nowhere."""

    given_up = False
    model_path = MODEL.path
    layout: StateLayout | None = None

    def __init__(self) -> None:
        self.adapters: dict[AdapterId, Adapter] = {}
        self.asked: list[tuple[TenantId | None, Message]] = []
        self.outcomes: dict[RequestId, Outcome] = {}
        self._numbers = count(1)

    def submit(
        self, body: Message, *, request: RequestId | None = None, tenant: TenantId | None = None
    ) -> "Answered":
        return Answered(self, body, request, tenant)

    async def request(
        self, body: Message, *, timeout_s: float | None = None, tenant: TenantId | None = None
    ) -> Message:
        self.asked.append((tenant, body))
        if isinstance(body, GetStatus):
            return self._status()
        if self.given_up and not isinstance(body, Sample):
            raise ActorUnavailable("the trainer was given up")
        return self._answer(body, tenant or TenantId("local"))

    def kinds(self) -> list[str]:
        return [body.kind for _, body in self.asked]

    def _answer(self, body: Message, tenant: TenantId) -> Message:  # noqa: C901  # one case a message
        match body:
            case DescribeModel():
                return ModelDescribed(model=MODEL)
            case CreateAdapter(name=name, lora=lora):
                return self._created(name, lora, tenant)
            case ListAdapters(name=name):
                own = [each.details for each in self.adapters.values() if each.details.tenant == tenant]
                return AdapterList(adapters=tuple(each for each in own if name in (None, each.name)))
            case ListTenants():
                names = sorted({each.details.tenant for each in self.adapters.values()})
                return TenantList(
                    tenants=tuple(TenantUsage(tenant=name, adapters=1, usage=Usage()) for name in names)
                )
            case OpenLane(adapter=adapter):
                return LaneOpened(lane=self._lane(), details=self._owned(adapter, tenant).details)
            case LoadCheckpoint(source=source, name=name, source_owner=owner):
                if name not in self._owned(source, owner or tenant).checkpoints:
                    raise CheckpointNotFound(f"no checkpoint {name}")
                return StateLoaded(step=3)
            case LoadVersion(source=source, version=version, source_owner=owner):
                if version not in self._owned(source, owner or tenant).versions:
                    raise VersionNotFound(f"no version {version}")
                return StateLoaded(step=0)
            case SaveCheckpoint(adapter=adapter, name=name):
                self._owned(adapter, tenant).checkpoints.add(name)
                if self.layout is not None:
                    directory = self.layout.checkpoint(adapter, name) / "1"
                    _write(directory / "checkpoint.json", b'{"size_bytes": 1000}')
                    _write(directory / "state.safetensors", bytes(1000))
                return CheckpointSaved(adapter=adapter, name=name, step=3, digest="0", size_bytes=1000)
            case PublishAdapter(adapter=adapter, held=held):
                return self._published(self._owned(adapter, tenant), held=held)
            case ExportWeights(adapter=adapter):
                assert self._owned(adapter, tenant).loaded
                data = np.frombuffer(SAFETENSORS, dtype=np.uint8)
                return WeightsExported(config_json='{"r": 8}', safetensors=data, step=3)
            case RefuseOperation(code=code, message=message):
                raise error_from_code(code, message)
            case UnloadAdapter(adapter=adapter):
                self._owned(adapter, tenant).loaded = False
                return Done()
            case DeleteAdapter(adapter=adapter):
                self._owned(adapter, tenant)
                del self.adapters[adapter]
                return Done()
            case DeleteCheckpoint(adapter=adapter, name=name):
                if name not in (names := self._owned(adapter, tenant).checkpoints):
                    raise CheckpointNotFound(f"no checkpoint {name}")
                names.remove(name)
                return Done()
            case DeleteVersion(adapter=adapter, version=version):
                self._owned(adapter, tenant).versions.pop(version, None)
                return Done()
            case GetVersions():
                own = [each for each in self.adapters.values() if each.details.tenant == tenant]
                records = tuple(record for each in own for record in each.versions.values())
                return VersionTable(last_event=0, records=records)
        raise AssertionError(f"nobody here answers {body.kind}")

    def _status(self) -> DaemonStatus:
        trainer = ActorStatus(
            actor="trainer",
            role="trainer",
            phase="failed" if self.given_up else "ready",
            pid=1,
            restarts=0,
            rss_bytes=0,
            waiting=0,
            details="",
        )
        return DaemonStatus(
            daemon_version="1",
            pid=1,
            uptime_s=1.0,
            state_dir="/state",
            base_model="tiny",
            http="",
            actors=(trainer,),
            adapters=len(self.adapters),
            versions=sum(len(each.versions) for each in self.adapters.values()),
            last_event=0,
            model_path=self.model_path,
        )

    def _created(self, name: str, lora: LoraSpec, tenant: TenantId) -> AdapterCreated:
        for each in self.adapters.values():
            if (each.details.tenant, each.details.name) == (tenant, name):
                raise AdapterExists(f"there is {name}")
        adapter = AdapterId(f"ad-{next(self._numbers)}")
        details = AdapterDetails(
            adapter=adapter,
            tenant=tenant,
            name=name,
            lora=lora,
            step=0,
            version=0,
            checkpoint_step=-1,
            parameters=10,
            state_bytes=100,
            created_unix_s=0.0,
        )
        self.adapters[adapter] = Adapter(details)
        return AdapterCreated(details=details, lane=self._lane())

    def _published(self, adapter: Adapter, *, held: bool) -> Receipt:
        number = adapter.details.version + 1
        adapter.details = replace(adapter.details, version=number)
        record = VersionRecord(
            adapter=adapter.details.adapter,
            tenant=adapter.details.tenant,
            name=adapter.details.name,
            number=number,
            step=3,
            directory="/nowhere",
            digest="0",
            lora=adapter.details.lora,
            modules=7,
            probe_tokens=(),
            probe_logprobs=(),
            held=held,
        )
        adapter.versions[number] = record
        if self.layout is not None:
            _write(self.layout.version(record.adapter, number) / "adapter_model.safetensors", SAFETENSORS)
        return Receipt(
            record=record,
            sampler="",
            engine="",
            engine_reason="",
            modules_bound=0,
            probe_max_abs_diff=None,
            waited_ms=0.0,
        )

    def _owned(self, adapter: AdapterId, tenant: TenantId) -> Adapter:
        found = self.adapters.get(adapter)
        if found is None or found.details.tenant != tenant:
            raise AdapterNotFound(f"no adapter {adapter}")
        return found

    def _lane(self) -> LaneId:
        return LaneId(f"ln-{next(self._numbers)}")


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


class Answered:
    """A request under way that is answered as soon as somebody waits for it."""

    waits_for = ""
    cause: WaitCause = "others"

    def __init__(
        self, bus: InMemoryBus, body: Message, request: RequestId | None, tenant: TenantId | None
    ) -> None:
        self._bus = bus
        self._body = body
        self._tenant = tenant
        self.request = request or new_request_id()

    async def result(self, timeout_s: float | None = None) -> Message:
        known = self._bus.outcomes.get(self.request)
        if known is None:
            known = await self._outcome()
            if not (isinstance(known.answer, LoractlError) and known.answer.retryable):
                self._bus.outcomes[self.request] = known
        elif known.content != _content(self._body):
            raise RequestConflict(f"{self.request} was used before for something else")
        if isinstance(known.answer, LoractlError):
            raise known.answer
        return known.answer

    async def _outcome(self) -> "Outcome":
        answer: Message | LoractlError
        try:
            answer = await self._bus.request(self._body, tenant=self._tenant)
        except LoractlError as error:
            answer = error
        return Outcome(_content(self._body), answer)


@dataclass
class Outcome:
    """content: of the request."""

    content: list[bytes]
    answer: Message | LoractlError


def _content(body: Message) -> list[bytes]:
    envelope = Envelope(request=RequestId(""), tenant=TenantId(""), body=body)
    return [bytes(frame) for frame in encode(envelope)]
