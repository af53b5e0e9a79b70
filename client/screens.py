"""What `daemon status` and `adapters` show: messages from the daemon as tables and JSON."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from rich.console import Console
from rich.text import Text

from ..bus.messages import ActorStatus, AdapterDetails, DaemonStatus, Receipt, VersionRecord
from .terminal import count_text, duration_text, show_facts, show_table, size_text

NO_ADAPTERS = "no adapters yet: make one with `loractl train DATA.jsonl --adapter NAME`"
_PHASE_STYLES = {"ready": "green", "failed": "bold red"}


def show_status(console: Console, status: DaemonStatus, adapters: Sequence[AdapterDetails] | None) -> None:
    """adapters: None when the trainer, which knows them, does not answer at the moment."""
    show_facts(
        console,
        {
            "daemon": f"{status.daemon_version}, pid {status.pid}, up {duration_text(status.uptime_s)}",
            "base model": status.base_model,
            "state": status.state_dir,
            "http": status.http or "off",
        },
    )
    console.print()
    show_actors(console, status.actors)
    console.print()
    if adapters is None:
        console.print(f"{status.adapters} adapters; the trainer cannot list them at the moment")
    elif adapters:
        show_adapters(console, adapters)
    else:
        console.print(NO_ADAPTERS)


def show_actors(console: Console, actors: Sequence[ActorStatus]) -> None:
    columns = ("ACTOR", "PHASE", "PID", "MEMORY", "RESTARTS", "WAITING", "DETAILS")
    show_table(console, columns, [_actor_row(actor) for actor in actors])


def _actor_row(actor: ActorStatus) -> tuple[str | Text, ...]:
    return (
        actor.actor,
        Text(actor.phase, _PHASE_STYLES.get(actor.phase, "yellow")),
        str(actor.pid) if actor.pid else "-",
        size_text(actor.rss_bytes) if actor.rss_bytes else "-",
        str(actor.restarts),
        str(actor.waiting),
        actor.details,
    )


def show_adapters(console: Console, adapters: Sequence[AdapterDetails]) -> None:
    columns = ("ADAPTER", "RANK", "ALPHA", "STEP", "SAVED", "VERSION", "PARAMETERS", "SERVED BY")
    show_table(console, columns, [_adapter_row(a) for a in adapters])


def _adapter_row(a: AdapterDetails) -> tuple[str, ...]:
    return (
        a.name,
        str(a.lora.rank),
        f"{a.lora.alpha:g}",
        str(a.step),
        _saved(a),
        str(a.version) if a.version else "-",
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
            "step": f"{a.step}, saved at {_saved(a)}",
            "parameters": f"{count_text(a.parameters)} ({size_text(a.state_bytes)} with optimizer)",
            "created": f"{created:%Y-%m-%d %H:%M:%S}",
            "served by": a.served_by or "nobody: it was not published yet",
        },
    )
    if versions:
        console.print()
        rows = [(str(v.number), str(v.step), str(v.modules), v.digest[:12], v.directory) for v in versions]
        show_table(console, ("VERSION", "STEP", "MODULES", "SHA-256", "FILES"), rows)


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
