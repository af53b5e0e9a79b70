"""The commands for clients over HTTP and tcp: keys, env, tokenizer-cache. Their work is `access`."""

from pathlib import Path

import click

from . import access
from .options import example, placed
from .startup import Place

_EXPIRES = click.option(
    "--expires", metavar="30d|12h|45m", help="Until when it is good.  [default: for ever]"
)


@click.group()
def keys() -> None:
    """Make, list and revoke keys: for HTTP, and for the bus over tcp."""


@keys.command()
@click.argument("name")
@_EXPIRES
@placed
def create(place: Place, name: str, expires: str | None) -> int:
    """Make an API key for the user NAME, and show it this once."""
    return access.create_key(place.config(), name, expires)


@keys.command(
    epilog=example(
        "loractl keys curve --tenant alice --out alice.key",
        "loractl daemon start --base-model tiny=/tmp/tiny --config daemon.listen=tcp://10.0.0.5:7000",
        "loractl adapters list --connect tcp://10.0.0.5:7000 --curve-key alice.key",
    )
)
@click.option("--tenant", metavar="NAME", help="Whom the client is.  [default: only the daemon's own keys]")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="[default: stdout]")
@_EXPIRES
@placed
def curve(place: Place, tenant: str | None, out: Path | None, expires: str | None) -> int:
    """Make the key file with which a client reaches the daemon over tcp.

    The daemon's own keys are made the first time. A tenant may have several key files.
    """
    if tenant is None and (out is not None or expires is not None):
        raise click.UsageError("--out and --expires go with --tenant NAME")
    return access.create_curve_key(place.config(), tenant, out, expires)


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@placed
def list_keys(place: Place, as_json: bool) -> int:
    """List whose keys there are: each name is a tenant.

    Nobody can read the keys themselves again.
    """
    return access.list_keys(place.config(), as_json=as_json)


@keys.command()
@click.argument("name")
@placed
def revoke(place: Place, name: str) -> int:
    """Forget all keys of NAME at once; their adapters stay."""
    return access.revoke_key(place.config(), name)


@click.command(epilog=example('eval "$(loractl env)"'))
@placed
def env(place: Place) -> int:
    """Print what points the Tinker SDK at the running daemon."""
    return access.show_environment(place.config())


@click.command(epilog=example('eval "$(loractl tokenizer-cache Qwen/Qwen3-0.6B ~/models/qwen3)"'))
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--cache", type=click.Path(path_type=Path), metavar="DIR", help="[default: Hugging Face's own]")
def tokenizer_cache(name: str, directory: Path, cache: Path | None) -> int:
    """Let clients find the tokenizer in DIR by NAME, offline."""
    return access.cache_tokenizer(name, directory, cache)
