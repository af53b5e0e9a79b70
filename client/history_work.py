"""The commands about an adapter's past: history and fork. Each returns its exit code."""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ..bus.client import Client
from ..bus.config import Config
from ..bus.errors import InvalidRequest, NotSupported
from ..bus.ids import AdapterId, TenantId
from ..bus.layout import StateLayout
from ..bus.messages import (
    AdapterCreated,
    AdapterDetails,
    AdapterList,
    CreateAdapter,
    DeleteAdapter,
    Done,
    HistoryEntry,
    ListAdapters,
    LoadCheckpoint,
    StateLoaded,
)
from . import screens
from .futures import checked
from .history import Difference, Rerun, read_history, run_again
from .history_sources import Kept, made_it, newest_checkpoint
from .history_state import standing, state_digest, without_window
from .terminal import counted, data_console, show_json, show_table, size_text, talk_console

_INSTEAD_OF_A_FORK = (
    "what it is now can be had all the same: save it (`save` of the Python client) and fork it again, which loads the "
    "checkpoint; or go on with `loractl train --resume` (`loractl adapters export` and `import`: weights alone)"
)


def show_history(config: Config, name: str, tenant: TenantId, *, as_json: bool) -> int:
    with client_of(config) as client:
        entries, whole = read_history(client, details_of(client, name, tenant).adapter, tenant)
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
    with client_of(config) as client:
        details = details_of(client, name, tenant)
        entries, whole = read_history(client, details.adapter, tenant)
        try:
            past = (entries, whole)
            made, _ = made_it(client, config, details, tenant, past, at_step, instead=_INSTEAD_OF_A_FORK)
        except InvalidRequest:
            saved = _saved_now(config, details, at_step)
            if whole or saved is None:
                raise
            _fork_from(client, details, saved, new, tenant)
            return 0
        with _made(client, details, new, tenant) as onto:
            differing = replayed(client, details.adapter, tenant, made, onto)
        step = details_of(client, new, tenant).step
    talk_console().print(
        f"{new} is {name} as it was at step {step}: {counted(len(made), 'operation')} ran again"
    )
    if differing:
        show_differing(differing)
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
    with _made(client, details, new, tenant) as onto:
        load = LoadCheckpoint(
            adapter=onto.adapter, lane=onto.lane, seq=onto.seq, source=details.adapter, name=saved.name
        )
        checked(onto.submit(load).result(), StateLoaded)
        onto.unload()  # it may have brought gradients, and a fork of a step has none
        now = standing(client, details.adapter, tenant).state
        if state_digest(client, onto.adapter, tenant, onto.lane, onto.seq) != without_window(now):
            raise InvalidRequest(
                f"checkpoint {saved.name!r} is not what {details.name} is now: save another one, then ask again"
            )
    talk_console().print(
        f"{new} is {details.name} as it was at step {saved.step}: loaded from checkpoint {saved.name!r}, whose state "
        "is its own now"
    )


@contextlib.contextmanager
def _made(client: Client, details: AdapterDetails, new: str, tenant: TenantId) -> Iterator[Rerun]:
    """A new adapter like another one, which is gone again where the block fails."""
    body = CreateAdapter(name=new, lora=details.lora)
    created = checked(client.submit(body, tenant=tenant).result(), AdapterCreated)
    adapter = created.details.adapter
    try:
        yield Rerun(client, tenant, adapter, created.lane)
    except BaseException:
        checked(client.submit(DeleteAdapter(adapter=adapter), tenant=tenant).result(), Done)
        raise


def replayed(
    source: Client,
    adapter: AdapterId,
    tenant: TenantId,
    made: Sequence[HistoryEntry],
    onto: Rerun,
) -> list[Difference]:
    ran = run_again(source, adapter, tenant, made, onto)
    return [difference for _, difference in ran if difference is not None]


def details_of(client: Client, name: str, tenant: TenantId) -> AdapterDetails:
    listed = checked(client.submit(ListAdapters(name=name), tenant=tenant).result(), AdapterList)
    (found,) = listed.adapters
    return found


@contextlib.contextmanager
def client_of(config: Config) -> Iterator[Client]:
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


def show_differing(differing: Sequence[Difference]) -> None:
    for each in differing[:20]:
        entry = each.entry
        by = by_text([each])
        talk_console().print(
            f"{entry.operation} {entry.seq}: its {each.field} is not what the journal has{by}"
        )


def by_text(differing: Sequence[Difference]) -> str:
    amounts = [each.by for each in differing if each.by is not None]
    return f" (by up to {np.max(amounts):.2g})" if amounts else ""
