"""loractl from Python: connect to a daemon, train adapters, sample from them.

    with connect() as service:
        pirate = service.create_adapter("pirate", rank=8)
        for batch in batches:
            pirate.forward_backward(batch)
            pirate.optim_step(1e-3)
        print(pirate.publish().result())
        print(service.sample("Where is the treasure?", adapter="pirate").texts[0])

Operations on an adapter are sent at once and answered in order; each returns a `Future`. A service
and its adapters belong to one thread; another thread connects for itself.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Self, TypedDict, Unpack

import numpy as np

from ..bus.chat import ChatTokenizer
from ..bus.client import Client
from ..bus.config import Config, load_config
from ..bus.errors import ActorUnavailable, AdapterNotFound, VersionNotFound
from ..bus.ids import AdapterId, TenantId
from ..bus.messages import (
    AdapterCreated,
    AdapterDetails,
    AdapterList,
    CreateAdapter,
    DaemonStatus,
    DeleteAdapter,
    DescribeModel,
    Done,
    GetStatus,
    GetVersions,
    LaneOpened,
    ListAdapters,
    ListTenants,
    LoraSpec,
    ModelDescribed,
    ModelDetails,
    OpenLane,
    Sample,
    SampleChunk,
    SampleResult,
    TenantList,
    TenantUsage,
    VersionRecord,
    VersionTable,
)
from ..bus.remote_daemon import remote_daemon
from .adapter import Adapter
from .futures import Future, ask, checked
from .text import ModelText, load_tokenizer, prompt_tokens

Prompt = str | Sequence[int]
# A daemon that is started again listens after a second or two, however large its model.
PATIENCE_S = 120.0


class SampleOptions(TypedDict, total=False):
    """adapter: a name, None for the base model. version: None for the newest published.
    max_tokens: 256 unless given. temperature: 1.0 unless given, 0 is greedy. seed: None draws one.
    raw: leave text bare instead of making it a user's turn."""

    adapter: str | None
    version: int | None
    max_tokens: int
    temperature: float
    seed: int | None
    num_samples: int
    raw: bool


def connect(
    state_dir: str | None = None,
    *,
    config: Config | None = None,
    on_waiting: Callable[[str], None] | None = None,
    patience_s: float = PATIENCE_S,
) -> "Service":
    """Connect to the daemon of a state directory, by default the one that the command line uses, or to the
    one elsewhere that the setting client.connect names.

    on_waiting: told why a request waits: when the daemon says so, or is away.
    patience_s: how long requests under way outlive a daemon that is away, see `Client`; 0: not at all.

    Raises:
        DaemonNotRunning: no daemon runs there.
        InvalidConfig: the settings or the key for a daemon elsewhere cannot be read.
        AccessDenied: a daemon elsewhere does not take the key.
    """
    config = config or load_config(state_dir=state_dir)
    where = remote_daemon(config) if config.client.connect else config
    return Service(Client(where, on_waiting=on_waiting, patience_s=patience_s))


class Service:
    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def tenant(self) -> TenantId:
        """Whose requests these are."""
        return self._client.tenant

    @cached_property
    def model(self) -> ModelDetails:
        """The base model that the daemon serves."""
        return ask(self._client, DescribeModel(), ModelDescribed).model

    @cached_property
    def text(self) -> ModelText:
        """The base model's tokenizer and chat template."""
        return ModelText(self.model, self._tokenizer)

    @cached_property
    def _tokenizer(self) -> ChatTokenizer:
        """The broker says where it is, so that prompts need no trainer."""
        status = self.status()
        return load_tokenizer(status.base_model, status.model_path)

    def status(self) -> DaemonStatus:
        return ask(self._client, GetStatus(), DaemonStatus)

    def adapters(self, timeout_s: float | None = None) -> tuple[AdapterDetails, ...]:
        """Raises:
        TimeoutError: the trainer, whose they are, did not answer in time.
        """
        return self.listed(timeout_s).adapters

    def listed(self, timeout_s: float | None = None) -> AdapterList:
        """One's own, and names of those that wait for another base model. Raises as `adapters`."""
        return Future(self._client.submit(ListAdapters()), AdapterList).result(timeout_s)

    def tenants(self) -> tuple[TenantUsage, ...]:
        """All tenants of this daemon and what each took of the trainer, by name."""
        return ask(self._client, ListTenants(), TenantList).tenants

    def listed_of(self, tenants: Iterable[TenantId]) -> list[AdapterList]:
        """For each of some tenants all adapters, and what they took of the trainer together. Whoever
        reaches the daemon's socket owns the daemon, and may ask for everybody."""
        asked = [self._client.submit(ListAdapters(), tenant=tenant) for tenant in tenants]
        return [checked(each.result(), AdapterList) for each in asked]

    def find(self, name: str) -> AdapterDetails | None:
        """The adapter of that name, if there is one. Raises AnotherBase: it is another base model's."""
        with contextlib.suppress(AdapterNotFound):
            return self.details(name)
        return None

    def details(self, name: str) -> AdapterDetails:
        """Raises:
        AdapterNotFound: there is no adapter of that name.
        """
        (found,) = ask(self._client, ListAdapters(name=name), AdapterList).adapters
        return found

    def create_adapter(
        self,
        name: str,
        *,
        rank: int = 16,
        alpha: float = 32.0,
        seed: int = 0,
        train_attn: bool = True,
        train_mlp: bool = True,
        train_unembed: bool = False,
    ) -> Adapter:
        """Register a fresh adapter.

        Raises:
            AdapterExists: the name is taken.
        """
        lora = LoraSpec(
            rank=rank,
            alpha=alpha,
            seed=seed,
            train_attn=train_attn,
            train_mlp=train_mlp,
            train_unembed=train_unembed,
        )
        return self.create_adapter_like(name, lora)

    def create_adapter_like(self, name: str, lora: LoraSpec) -> Adapter:
        """As `create_adapter`, with everything about it in one piece."""
        created = ask(self._client, CreateAdapter(name=name, lora=lora), AdapterCreated)
        return Adapter(self._client, created.details, created.lane)

    def open_adapter(self, name: str) -> Adapter:
        """An existing adapter, to train it further, save, load or publish it.

        Raises:
            AdapterNotFound: there is no adapter of that name.
        """
        opened = ask(self._client, OpenLane(adapter=self.details(name).adapter), LaneOpened)
        return Adapter(self._client, opened.details, opened.lane)

    def delete_adapter(self, name: str) -> None:
        """Delete an adapter with its checkpoints and versions, after what is under way on it."""
        ask(self._client, DeleteAdapter(adapter=self.details(name).adapter), Done)

    def versions(self, name: str) -> list[VersionRecord]:
        """The published versions of an adapter that are still kept, oldest first."""
        adapter = self.details(name).adapter
        table = ask(self._client, GetVersions(), VersionTable)
        return sorted((r for r in table.records if r.adapter == adapter), key=lambda r: r.number)

    def sample(self, prompt: Prompt, **options: Unpack[SampleOptions]) -> SampleResult:
        """Continue a prompt and wait for the whole answer; `submit_sample` does not wait."""
        return self.submit_sample(self.sample_request(prompt, **options)).result()

    def sample_request(
        self, prompt: Prompt, *, stream: bool = False, **options: Unpack[SampleOptions]
    ) -> Sample:
        """The request for a prompt, to be sent by `submit_sample` or `stream_sample`.

        prompt: text, as one user turn of a chat (`raw` leaves it bare), or token ids.

        Raises:
            AdapterNotFound: there is no adapter of that name.
            VersionNotFound: it was never published.
        """
        name = options.get("adapter")
        adapter = None if name is None else self._published(name)
        if isinstance(prompt, str):
            prompt = prompt_tokens(self._tokenizer, prompt, raw=options.get("raw", False))
        return Sample(
            adapter=adapter,
            version=options.get("version"),
            prompt=np.asarray(prompt, np.int64),
            max_tokens=options.get("max_tokens", 256),
            temperature=options.get("temperature", 1.0),
            seed=options.get("seed"),
            num_samples=options.get("num_samples", 1),
            stream=stream,
        )

    def submit_sample(self, request: Sample) -> Future[SampleResult]:
        return Future(self._client.submit(request), SampleResult)

    def stream_sample(self, request: Sample) -> Iterator[SampleChunk | SampleResult]:
        """Parts of the answer as they come, then the whole. Leaving it early aborts the request."""
        for part in self._client.stream(request):
            yield part if isinstance(part, SampleChunk) else checked(part, SampleResult)

    def _published(self, name: str) -> AdapterId:
        try:
            details = self.details(name)
        except ActorUnavailable:  # the trainer was given up; samplers still have what it published
            records = ask(self._client, GetVersions(), VersionTable).records
            if found := {r.adapter for r in records if r.name == name}:
                return found.pop()
            raise
        if not details.version:
            raise VersionNotFound(
                f"{name!r} was not published yet: `loractl train` publishes at its end, "
                "`Adapter.publish` does from Python"
            )
        return details.adapter

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
