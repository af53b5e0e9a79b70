"""Celery over Redis as `journal.py` asks it, in processes and a virtual environment that go when it ends."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

# Does so many requests of so many clients; returns seconds of all, and of each.
Round = Callable[[int, int], tuple[float, Sequence[float]]]

# One process that does one after another, or threads of one process. On a machine of two cores its
# default, a process per core, was slower than either.
POOLS = {"celery, solo": ["--pool=solo"], "celery, threads": ["--pool=threads", "--concurrency=8"]}
PATIENCE_S = 60


class NotAvailable(Exception):
    """Celery or Redis is not to be had here, and why."""


@contextmanager
def celery_with_redis() -> Iterator[dict[str, Round]]:
    """Under each of its pools, over one Redis. Raises NotAvailable."""
    if shutil.which("redis-server") is None:
        raise NotAvailable("there is no redis-server on the PATH")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lo")))
        python = environment_with_celery(directory / "venv")
        port = free_port()
        stack.enter_context(ended(redis(directory, port)))
        yield {
            way: stack.enter_context(celery(python, directory, f"redis://127.0.0.1:{port}/{number}", pool))
            for number, (way, pool) in enumerate(POOLS.items())
        }


@contextmanager
def celery(python: Path, directory: Path, url: str, pool: Sequence[str]) -> Iterator[Round]:
    environment = os.environ | {"CELERY_NOOP_URL": url, "PYTHONPATH": str(Path(__file__).parent)}
    worker = [str(python), "-m", "celery", "-A", "celery_noop", "worker", *pool, "--loglevel=ERROR"]
    worker += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with ExitStack() as stack:
        silent = subprocess.DEVNULL
        working = subprocess.Popen(worker, stdout=silent, stderr=silent, env=environment, cwd=directory)
        stack.enter_context(ended(working))
        asking = subprocess.Popen(
            [str(python), str(Path(__file__).with_name("celery_noop.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=directory,
        )
        stack.enter_context(ended(asking))
        assert asking.stdout is not None
        assert asking.stdout.readline() == "ready\n"
        yield lambda clients, requests: ask_celery(asking.stdin, asking.stdout, clients, requests)


def ask_celery(
    into: IO[str] | None, out: IO[str] | None, clients: int, requests: int
) -> tuple[float, list[float]]:
    assert into is not None
    assert out is not None
    into.write(f"{clients} {requests}\n")
    into.flush()
    answered = json.loads(out.readline())
    return answered["s"], answered["took_s"]


def environment_with_celery(directory: Path) -> Path:
    """A virtual environment; its python."""
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    wanted = [str(python), "-m", "pip", "install", "-q", "celery[redis]", "packaging"]
    tried = subprocess.run(wanted, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        raise NotAvailable(f"Celery cannot be installed: {tried.stderr.strip()[-300:]}")
    return python


def redis(directory: Path, port: int) -> "subprocess.Popen[bytes]":
    settings = ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--bind", "127.0.0.1"]
    argv = ["redis-server", "--port", str(port), "--dir", str(directory), *settings]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.05)
    process.kill()
    raise NotAvailable("redis-server does not start")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ended(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        process.wait()
