"""Where the HTTP examples find a service, and what their users learn.

A service is named by --url and --key, or by TINKER_BASE_URL and TINKER_API_KEY (`loractl env` prints
them). Without either, a small daemon with a tiny model runs as long as the example.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from http_client import Client, ServiceError, WorkFailed
from loractl.bus.config import load_config
from loractl.bus.errors import LoractlError
from loractl.bus.keys import ensure_local_key
from loractl.bus.layout import StateLayout
from loractl.client.interrupts import interrupt_when_ended
from loractl.client.tiny_model import make_tiny_model
from loractl.daemon import launch

QUESTION = "What is the sea?"  # the users' files answer it

_DATA = Path(__file__).resolve().parent / "data"
_VOICES = ("pirate", "haiku", "sql")


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--url", default=os.environ.get("TINKER_BASE_URL"), help="where a service is")
    made.add_argument("--key", default=os.environ.get("TINKER_API_KEY", ""), help="its API key")
    return made


@contextmanager
def found_service(options: argparse.Namespace) -> Iterator[Client]:
    """A client of the service that the command line names, or of one that ends with this block.

    An error that the block does not deal with ends the example, with its reason on stderr.
    """
    interrupt_when_ended()  # so that its daemon stops, too
    try:
        with nullcontext(Client(options.url, options.key)) if options.url else _own_daemon() as client:
            yield client
    except (ServiceError, WorkFailed, LoractlError) as error:
        sys.exit(f"error: {error}")


@contextmanager
def _own_daemon() -> Iterator[Client]:
    print("no --url: starting a daemon with a tiny model for this example", file=sys.stderr)
    root = Path(tempfile.mkdtemp(prefix="loractl-example-"))
    try:
        model = make_tiny_model(root / "model").directory
        settings = ["model.name=tiny", f"model.path={model}", "daemon.http=127.0.0.1:0"]
        config = load_config(state_dir=str(root / "state"), overrides=settings)
        status = launch.start_detached(config, config.daemon.ready_timeout_s)
        try:
            url = next(actor.details for actor in status.actors if actor.role == "bridge")
            yield Client(url, ensure_local_key(StateLayout(root / "state")))
        finally:
            launch.stop(config)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def chats_of(user: int, count: int = 8) -> list[Any]:
    """What a user trains on: the first rows of one of the demo's files."""
    lines = (_DATA / f"{_VOICES[user % len(_VOICES)]}.jsonl").read_text().splitlines()
    return [json.loads(line)["messages"] for line in lines[:count]]
