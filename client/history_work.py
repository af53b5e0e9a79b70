"""The commands about an adapter's past: history, fork and verify. Each returns its exit code."""

import contextlib
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from ..bus.client import Client
from ..bus.config import ClientConfig, Config, FairnessConfig, QuotasConfig, config_from_json
from ..bus.errors import InvalidRequest, NotSupported
from ..bus.ids import AdapterId, LaneId, TenantId
from ..bus.layout import StateLayout
from ..bus.messages import (
    AdapterCreated,
    AdapterDetails,
    AdapterList,
    CreateAdapter,
    DeleteAdapter,
    DescribeModel,
    Done,
    HistoryEntry,
    ListAdapters,
    LoadCheckpoint,
    LoadVersion,
    ModelDescribed,
    StateLoaded,
)
from . import screens
from .futures import checked
from .history import KEPT_SO_LONG, Difference, changes, read_history, run_again, without_load
from .history_sources import Kept, Source, copy_source, newest_checkpoint, own_save, source_of
from .history_weights import exported, standing
from .terminal import EXIT_FAILED, counted, data_console, show_json, show_table, size_text, talk_console

_INSTEAD_OF_A_FORK = (
    "what it is now can be had all the same: save it (`save` of the Python client) and fork it again, which loads the "
    "checkpoint; or go on with `loractl train --resume` (`loractl adapters export` and `import`: weights alone)"
)
_INSTEAD_OF_A_PROOF = "give them more before a run that is to be verified"


class StartDaemon(Protocol):
    """Starts a daemon with a configuration, and stops it when the block ends."""

    def __call__(self, config: Config) -> contextlib.AbstractContextManager[None]: ...


def show_history(config: Config, name: str, tenant: TenantId, *, as_json: bool) -> int:
    with _client(config) as client:
        entries, whole = read_history(client, _details(client, name, tenant).adapter, tenant)
    if as_json:
        data = {"from_creation": whole, "operations": screens.plain_data(tuple(entries))}
        show_json(data_console(), data)
        return 0
    if entries:
        columns = ("OPERATION", "CAME", "SIZE", "STATE", "STEP", "OUTCOME")
        show_table(data_console(), columns, [_row(entry) for entry in entries])
    since = "all of it" if whole else "older operations are no longer kept"
    talk_console().print(f"{counted(len(entries), 'operation')} in the journal: {since}")
    return 0


def fork_adapter(config: Config, name: str, new: str, at_step: int | None, tenant: TenantId) -> int:
    """Make a new adapter that is what another one was at a step."""
    with _client(config) as client:
        details = _details(client, name, tenant)
        entries, whole = read_history(client, details.adapter, tenant)
        try:
            past = (entries, whole)
            made, _ = _made_it(client, config, details, tenant, past, at_step, instead=_INSTEAD_OF_A_FORK)
        except InvalidRequest:
            saved = _saved_now(config, details, at_step)
            if whole or saved is None:
                raise
            _fork_from(client, details, saved, new, tenant)
            return 0
        with _made(client, details, new, tenant) as onto:
            differing = _replayed(client, details.adapter, tenant, made, client, onto)
        step = _details(client, new, tenant).step
    talk_console().print(
        f"{new} is {name} as it was at step {step}: {counted(len(made), 'operation')} ran again"
    )
    if differing:
        _show(differing)
        talk_console().print("its answers are not the journal's to the bit, see above; its steps are")
    return 0


def _saved_now(config: Config, details: AdapterDetails, at_step: int | None) -> Kept | None:
    """A checkpoint of what the adapter is at this moment, where that is what is asked for."""
    if at_step not in (None, details.step) or (at_step is None and details.open_window):
        return None
    saved = newest_checkpoint(StateLayout(Path(config.state_dir)), details.adapter)
    return saved if saved is not None and saved.step == details.step else None


def _fork_from(client: Client, details: AdapterDetails, saved: Kept, new: str, tenant: TenantId) -> None:
    """Raises InvalidRequest: another state has been loaded since, or it has gone on."""
    with _made(client, details, new, tenant) as (adapter, lane):
        load = LoadCheckpoint(adapter=adapter, lane=lane, seq=1, source=details.adapter, name=saved.name)
        checked(client.submit(load, tenant=tenant).result(), StateLoaded)
        now = standing(client, details.adapter, tenant).weights
        if exported(client, adapter, tenant, lane, 2) != now:
            raise InvalidRequest(
                f"checkpoint {saved.name!r} is not what {details.name} is now: save another one, then ask again"
            )
    talk_console().print(
        f"{new} is {details.name} as it was at step {saved.step}: loaded from checkpoint {saved.name!r}, whose weights "
        "are its own now"
    )


@contextlib.contextmanager
def _made(
    client: Client, details: AdapterDetails, new: str, tenant: TenantId
) -> Iterator[tuple[AdapterId, LaneId]]:
    """A new adapter like another one, which is gone again where the block fails."""
    body = CreateAdapter(name=new, lora=details.lora)
    created = checked(client.submit(body, tenant=tenant).result(), AdapterCreated)
    adapter = created.details.adapter
    try:
        yield adapter, created.lane
    except BaseException:
        checked(client.submit(DeleteAdapter(adapter=adapter), tenant=tenant).result(), Done)
        raise


def verify_adapter(config: Config, name: str, tenant: TenantId, start: StartDaemon) -> int:
    """Run an adapter's journal alone in a fresh trainer and compare every answer, and the weights.

    It may train meanwhile: what it does from now on is left out.
    """
    with _client(config) as client, tempfile.TemporaryDirectory(prefix="lo") as scratch:
        details = _details(client, name, tenant)
        now = standing(client, details.adapter, tenant)
        past = (now.entries, now.whole)
        made, source = _made_it(client, config, details, tenant, past, None, instead=_INSTEAD_OF_A_PROOF)
        here, there = StateLayout(Path(config.state_dir)), StateLayout(Path(scratch) / "s")
        if source is not None:
            copy_source(source, here, there)
        alone = alone_like(config_from_json(here.config.read_text(encoding="utf-8")), there.root)
        talk_console().print(f"a fresh trainer runs {counted(len(made), 'operation')} of {name} alone")
        with start(alone), Client(alone) as fresh:
            _check_same_base(client, fresh)
            # Named like no adapter whose files were copied there.
            body = CreateAdapter(name=f"alone-{secrets.token_hex(8)}", lora=details.lora)
            created = checked(fresh.submit(body, tenant=tenant).result(), AdapterCreated)
            onto = (created.details.adapter, created.lane)
            differing = _replayed(client, details.adapter, tenant, made, fresh, onto)
            same_weights = now.weights == exported(fresh, onto[0], tenant, created.lane, len(made) + 1)
    if (differing or not same_weights) and source is not None and not source.surely:
        raise InvalidRequest(
            f"it cannot be told whether {name} is what it would be alone: the checkpoint that it was loaded from may "
            "have been saved anew under its name, and the journal does not say any more"
        )
    return _verdict(name, made, differing, same_weights=same_weights)


def _check_same_base(running: Client, fresh: Client) -> None:
    """Raises InvalidRequest: the daemon runs on weights that are not in the model's files any more."""
    model, now = (
        checked(each.submit(DescribeModel()).result(), ModelDescribed).model for each in (running, fresh)
    )
    if model.weights != now.weights:
        raise InvalidRequest(
            f"base model {model.name!r} has other weights in {model.path} than when the daemon started: nothing can be "
            "told on these; put back the files that it had"
        )


def _verdict(
    name: str, made: Sequence[HistoryEntry], differing: Sequence[Difference], *, same_weights: bool
) -> int:
    _show(differing)
    talk = talk_console()
    if differing or not same_weights:
        weights = "the weights are equal" if same_weights else "the weights differ"
        talk.print(f"{name} is NOT what it would be alone: {len(differing)} of {len(made)} differ, {weights}")
        return EXIT_FAILED
    talk.print(f"{name} is to the bit what it would be alone: {counted(len(made), 'answer')} and the weights")
    return 0


def _replayed(
    source: Client,
    adapter: AdapterId,
    tenant: TenantId,
    made: Sequence[HistoryEntry],
    target: Client,
    onto: tuple[AdapterId, LaneId],
) -> list[Difference]:
    ran = run_again(source, adapter, tenant, made, target, onto)
    return [difference for _, difference in ran if difference is not None]


def _made_it(
    client: Client,
    config: Config,
    details: AdapterDetails,
    tenant: TenantId,
    past: tuple[Sequence[HistoryEntry], bool],
    at_step: int | None,
    *,
    instead: str,
) -> tuple[list[HistoryEntry], Source | None]:
    """What made an adapter what it was at a step, and what that begins with. past: as `read_history` has it.

    A checkpoint of its own that it went back to, and that is not kept as it was, is done without: the journal has
    what led to it.

    Raises:
        InvalidRequest: the journal does not tell, or what another adapter saved is no longer kept.
    """
    entries, whole = past
    while True:
        made = _from_the_start(changes(entries, at_step=at_step, whole=whole), whole=whole, instead=instead)
        try:
            return made, _source(client, details, tenant, made, config)
        except InvalidRequest:
            save = own_save(client, details.adapter, made[0], tenant)
            if save is None:
                raise
            entries = without_load(entries, made[0], save)


def _from_the_start(made: list[HistoryEntry], *, whole: bool, instead: str) -> list[HistoryEntry]:
    """Raises InvalidRequest: the journal does not go back to where the state came from."""
    loads = (LoadCheckpoint.kind, LoadVersion.kind, "import_weights")
    if not whole and not (made and made[0].operation in loads):
        raise InvalidRequest(
            f"the journal does not go back to this adapter's beginning any more: {KEPT_SO_LONG}; {instead}"
        )
    return made


def alone_like(running: Config, state: Path) -> Config:
    """The model and trainer that a daemon runs with, and a state that nobody keeps. Of everything that is
    for others (samplers, addresses, quotas, shares) nothing, and no chaos."""
    return replace(
        running,
        state_dir=str(state),
        trainer=replace(running.trainer, keep_checkpoints=0),
        sampler=replace(running.sampler, count=0),
        daemon=replace(running.daemon, http="none", listen="", chaos=0),
        fairness=FairnessConfig(),
        quotas=QuotasConfig(queued_tokens=0, held_bytes=0),
        client=ClientConfig(),
        journal=replace(running.journal, enabled=False),
    )


def _source(
    client: Client, details: AdapterDetails, tenant: TenantId, made: Sequence[HistoryEntry], config: Config
) -> Source | None:
    """What the first operation loads. Raises InvalidRequest: that is not there any more, or another."""
    if not made:
        return None
    return source_of(client, details.adapter, made[0], tenant, StateLayout(Path(config.state_dir)))


def _details(client: Client, name: str, tenant: TenantId) -> AdapterDetails:
    listed = checked(client.submit(ListAdapters(name=name), tenant=tenant).result(), AdapterList)
    (found,) = listed.adapters
    return found


@contextlib.contextmanager
def _client(config: Config) -> Iterator[Client]:
    """Raises NotSupported: another machine's daemon is meant."""
    if config.client.connect:
        raise NotSupported(
            f"{config.client.connect} is another daemon than this machine's: its journal and files are read only on "
            "the machine where it runs"
        )
    client = Client(config)
    try:
        yield client
    finally:
        client.close()


def _row(entry: HistoryEntry) -> tuple[str, ...]:
    came = datetime.fromtimestamp(entry.came_unix_s, UTC).astimezone()
    return (
        entry.operation,
        came.isoformat(sep=" ", timespec="seconds"),
        size_text(entry.size_bytes),
        entry.state,
        str(entry.step) if entry.step >= 0 else "",
        entry.details,
    )


def _show(differing: Sequence[Difference]) -> None:
    for each in differing[:20]:
        entry = each.entry
        talk_console().print(f"{entry.operation} {entry.seq}: its {each.field} is not what the journal has")
