"""The commands about adapters. Their work is `commands` and `history_work`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..bus.ids import LOCAL_TENANT, TenantId, checked_name
from . import commands, history_work
from .options import placed, reaching
from .startup import Place


def tenant_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Whose adapter it is."""
    return click.option(
        "--tenant",
        default=LOCAL_TENANT,
        metavar="NAME",
        help=f"Whose it is.  [default: {LOCAL_TENANT}]",
        callback=lambda _context, _option, name: TenantId(checked_name(name, what="a tenant")),
    )(command)


@click.group()
def adapters() -> None:
    """List, show, fork, remove, export and import adapters, and read their past."""


@adapters.command("list")
@click.option("--tenant", metavar="NAME", help="Whose.  [default: one's own]")
@click.option("--all", "everybody", is_flag=True, help="Everybody's.")
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@reaching
def list_(place: Place, tenant: str | None, everybody: bool, as_json: bool) -> int:
    """List a tenant's adapters, and what they took together."""
    if tenant is not None and everybody:
        raise click.UsageError("choose --tenant or --all")
    wanted = TenantId(checked_name(tenant, what="a tenant")) if tenant is not None else None
    return commands.list_adapters(place.config(), wanted, everybody=everybody, as_json=as_json)


@adapters.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@reaching
def show(place: Place, name: str, as_json: bool) -> int:
    """Show an adapter: its state, waits, usage and versions."""
    return commands.show_adapter(place.config(), name, as_json=as_json)


@adapters.command()
@click.argument("name")
@reaching
def rm(place: Place, name: str) -> int:
    """Remove an adapter with its checkpoints and versions."""
    return commands.remove_adapter(place.config(), name)


@adapters.command()
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--version", type=int, help="A published version.  [default: the newest]")
@reaching
def export(place: Place, name: str, directory: Path, version: int | None) -> int:
    """Copy a published version into DIR, as PEFT reads it."""
    return commands.export_adapter(place.config(), name, directory, version)


@adapters.command("import")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("name")
@reaching
def import_(place: Place, directory: Path, name: str) -> int:
    """Make the adapter NAME from a PEFT directory, and publish it."""
    return commands.import_directory(place.config(), directory, checked_name(name, what="an adapter"))


@adapters.command()
@click.argument("name")
@tenant_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@placed
def history(place: Place, name: str, tenant: TenantId, as_json: bool) -> int:
    """Show what was done to an adapter, as the journal has it."""
    return history_work.show_history(place.config(), name, tenant, as_json=as_json)


@adapters.command()
@click.argument("name")
@click.argument("new")
@click.option("--at-step", type=click.IntRange(min=0), metavar="N", help="[default: where it is now]")
@tenant_option
@placed
def fork(place: Place, name: str, new: str, at_step: int | None, tenant: TenantId) -> int:
    """Make NEW what the adapter NAME was at a step, from the journal.

    It runs NAME's operations again, from its creation or the last state that it loaded. Once the journal has let go
    of the first of them (journal.keep_s, journal.keep_bytes) it makes NEW from NAME's newest checkpoint, where NAME
    has done nothing since, and is refused otherwise.
    """
    new = checked_name(new, what="an adapter")
    return history_work.fork_adapter(place.config(), name, new, at_step, tenant)
