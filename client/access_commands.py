"""The commands for clients over HTTP: keys, env, tokenizer-cache. Their work is `access`."""

from pathlib import Path

import click

from . import access
from .options import example, placed
from .startup import Place


@click.group()
def keys() -> None:
    """Make, list and revoke API keys for HTTP."""


@keys.command()
@click.argument("name")
@placed
def create(place: Place, name: str) -> int:
    """Make a key for the user NAME, and show it this once."""
    return access.create_key(place.config(), name)


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
    """Forget the key of NAME at once; their adapters stay."""
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
