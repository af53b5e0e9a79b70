"""What `daemon status` and `adapters` show: messages from the daemon as tables and JSON."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from rich.console import Console
from rich.text import Text

from ..bus.disk_room import mib_text
from ..bus.messages import (
    ActorStatus,
    AdapterDetails,
    AdapterList,
    DaemonStatus,
    Receipt,
    TenantUsage,
    Usage,
    VersionRecord,
)
from .terminal import count_text, counted, duration_text, show_facts, show_table, size_text

NO_ADAPTERS = "no adapters yet: make one with `loractl train DATA.jsonl --adapter NAME`"
_NAMES_SHOWN = 8
_PLACES = {"device": "on the device", "host": "in host memory", "disk": "on disk"}
_TO_DO = "see `loractl daemon logs`, mend the cause and run `loractl daemon restart`"
_PHASE_STYLES = {"ready": "green", "failed": "bold red"}


def show_status(console: Console, status: DaemonStatus, listed: AdapterList | None) -> None:
    """listed: one's own adapters; None when the trainer, which knows them, does not answer at the moment."""
    show_facts(
        console,
        {
            "daemon": f"{status.daemon_version}, pid {status.pid}, up {duration_text(status.uptime_s)}",
            "base model": status.base_model,
            "state": status.state_dir,
            "http": status.http or "off",
            **({"chaos": status.chaos} if status.chaos else {}),
            **({"disk": said} if (said := disk_text(status)) else {}),
            **({"put off": _put_off_text(status)} if status.put_off else {}),
        },
    )
    console.print()
    show_actors(console, status.actors)
    if gone := [actor.actor for actor in status.actors if actor.phase == "failed"]:
        console.print(Text(f"{', '.join(gone)} given up: {_TO_DO}", "bold red"))
    console.print()
    if listed is None:
        console.print(f"{counted(status.adapters, 'adapter')}: the trainer cannot list them at the moment")
        return
    if listed.adapters:
        show_adapters(console, listed.adapters)
    elif not listed.elsewhere:
        console.print(NO_ADAPTERS)
    if listed.elsewhere:
        console.print(elsewhere_text(listed.elsewhere))
    if (others := status.adapters - len(listed.adapters)) > 0:
        console.print(f"{counted(others, 'adapter')} of other tenants")


def disk_text(status: DaemonStatus) -> str:
    """What to know of a disk that is full, or nearly so; nothing of any other."""
    free, kept = status.disk_free_bytes, status.disk_kept_bytes
    if free >= 2 * kept:
        return ""
    said = f"{mib_text(free)} free, and the journal keeps {mib_text(kept)} for outcomes of what runs"
    if status.disk_is_full:
        return f"full ({said}): requests that change something are refused until there is more room"
    return (
        f"nearly full ({said}): large requests are refused, and all that change something when less is left"
    )


def _put_off_text(status: DaemonStatus) -> str:
    said = f"{counted(status.put_off, 'adapter')} cannot be brought back just now (`loractl daemon logs` says why)"
    if not status.another_base:
        return said
    return (
        f"{said}, {status.another_base} of them for another base model than this: what waits of those runs "
        "when the daemon is started with the model that they had"
    )


def elsewhere_text(names: Sequence[str]) -> str:
    """Of adapters that wait for another base model."""
    shown = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
    wait = "waits" if len(names) == 1 else "wait"
    return f"{counted(len(names), 'adapter')} {wait} for another base model than this daemon's: {shown}"


def show_actors(console: Console, actors: Sequence[ActorStatus]) -> None:
    columns = ("ACTOR", "PHASE", "PID", "MEMORY", "RESTARTS", "WAITING", "DETAILS")
    show_table(console, columns, [_actor_row(actor) for actor in actors])


def _actor_row(actor: ActorStatus) -> tuple[str | Text, ...]:
    hangs = _hang_text(actor)
    return (
        actor.actor,
        Text(actor.phase, "yellow" if hangs else _PHASE_STYLES.get(actor.phase, "yellow")),
        str(actor.pid) if actor.pid else "-",
        size_text(actor.rss_bytes) if actor.rss_bytes else "-",
        str(actor.restarts),
        str(actor.waiting),
        f"given up: {actor.details}" if actor.phase == "failed" else hangs or actor.details,
    )


def _hang_text(actor: ActorStatus) -> str:
    """What to know of one that may hang; nothing of any other."""
    if actor.silent_s:
        return f"no sign of life for {duration_text(actor.silent_s)}: started again if that goes on"
    if actor.stuck_s:
        at = actor.stuck_at or "what it is at"
        return f"no further with {at} for {duration_text(actor.stuck_s)}: started again if that goes on"
    return ""


def show_adapters(
    console: Console, adapters: Sequence[AdapterDetails], *, with_tenants: bool = False
) -> None:
    columns = ("ADAPTER", "RANK", "STEP", "SAVED", "VERSION", "PHASE", "PLACE", "PARAMS", "SERVED BY")
    first = ("TENANT",) if with_tenants else ()
    rows = [(*((a.tenant,) if with_tenants else ()), *_adapter_row(a)) for a in adapters]
    show_table(console, (*first, *columns), rows)


def _adapter_row(a: AdapterDetails) -> tuple[str, ...]:
    return (
        a.name,
        str(a.lora.rank),
        str(a.step),
        _saved(a),
        str(a.version) if a.version else "-",
        a.phase,
        a.place,
        count_text(a.parameters),
        a.served_by.partition(":")[0] or "-",  # why that engine, `adapters show` says
    )


def show_adapter(console: Console, a: AdapterDetails, versions: Sequence[VersionRecord]) -> None:
    trained = [name for name in ("attn", "mlp", "unembed") if getattr(a.lora, f"train_{name}")]
    created = datetime.fromtimestamp(a.created_unix_s, UTC).astimezone()
    show_facts(
        console,
        {
            "adapter": a.name,
            "id": a.adapter,
            "rank, alpha": f"{a.lora.rank}, {a.lora.alpha:g}",
            "trains": ", ".join(trained),
            "seed": str(a.lora.seed),
            "step": f"{a.step}, saved at {_saved(a)}"
            + ("; gradients wait for the next one" if a.open_window else ""),
            "phase": a.phase + (f", {counted(a.queued, 'operation')} under way" if a.queued else ""),
            **({"waiting": a.waits_for} if a.waits_for else {}),
            "parameters": count_text(a.parameters),
            "state": f"{_PLACES[a.place]}; takes {size_text(a.row_bytes)} on the device, at most "
            f"{size_text(a.state_bytes)} elsewhere",
            **usage_facts(a.usage, since=" since the trainer started"),
            "created": f"{created:%Y-%m-%d %H:%M:%S}",
            "served by": a.served_by
            or f"nobody: {'no sampler has it' if a.version else 'it was not published yet'}",
        },
    )
    if versions:
        console.print()
        rows = [(str(v.number), str(v.step), str(v.modules), v.digest[:12], v.directory) for v in versions]
        show_table(console, ("VERSION", "STEP", "MODULES", "SHA-256", "FILES"), rows)


def usage_facts(usage: Usage, *, since: str = "") -> dict[str, str]:
    """What was taken of the trainer since it started."""
    seconds = usage.trainer_ms / 1000
    speed = (
        f", {count_text(round(usage.tokens / seconds))} a second of it" if seconds and usage.tokens else ""
    )
    return {
        "trainer time": _time_text(usage.trainer_ms) + since,
        "disk time": _time_text(usage.disk_ms),
        "tokens": f"{usage.tokens:,}{speed}",
        "operations": f"{usage.operations:,}, of them {counted(usage.steps, 'optimizer step')}",
        "passes": f"{usage.passes:,}, {usage.shared_passes:,} of them shared with other adapters",
        "swaps": f"{usage.swaps:,} to the device, {size_text(usage.swapped_bytes)} moved both ways",
    }


def _time_text(ms: float) -> str:
    return f"{ms / 1000:.1f} s" if ms < 60_000 else duration_text(ms / 1000)


def show_tenants(console: Console, tenants: Sequence[TenantUsage]) -> None:
    """What each took of the trainer since it started."""
    took = ("TRAINER", "DISK", "TOKENS", "OPERATIONS", "STEPS", "PASSES", "SHARED", "SWAPS", "MOVED")
    show_table(console, ("TENANT", "ADAPTERS", *took), [_tenant_row(each) for each in tenants])


def _tenant_row(each: TenantUsage) -> tuple[str, ...]:
    usage = each.usage
    counts = (usage.operations, usage.steps, usage.passes, usage.shared_passes, usage.swaps)
    return (
        each.tenant,
        f"{each.adapters:,}",
        _time_text(usage.trainer_ms),
        _time_text(usage.disk_ms),
        count_text(usage.tokens),
        *(f"{count:,}" for count in counts),
        size_text(usage.swapped_bytes),
    )


def usage_line(usage: Usage) -> str:
    """All of a tenant's adapters in one line, deleted ones too."""
    facts = usage_facts(usage)
    return "in all since the trainer started: " + "; ".join(f"{name} {text}" for name, text in facts.items())


def _saved(a: AdapterDetails) -> str:
    return "never" if a.checkpoint_step < 0 else str(a.checkpoint_step)


def receipt_text(receipt: Receipt) -> str:
    """One line: which version, who serves it, how exactly."""
    record = receipt.record
    published = f"{record.name} version {record.number} (step {record.step})"
    if not receipt.sampler:
        return f"published {published}; this daemon has no sampler to serve it"
    why = f": {receipt.engine_reason}" if receipt.engine_reason else ""
    probe = receipt.probe_max_abs_diff
    exact = "" if probe is None else f", probe logprobs within {probe:.1e} of the trainer's"
    return f"published {published}: served by {receipt.sampler} ({receipt.engine}{why}){exact}"


def plain_data(message: object) -> object:
    """A message without arrays as what JSON can say."""
    return msgspec.to_builtins(message)
