"""The whole configuration: one frozen tree, read once, passed down by argument.

Later sources win: defaults, `loractl.toml` (in the state directory, or `LORACTL_CONFIG`),
environment (`LORACTL_TRAINER__SLOTS=8`), flags (`--config trainer.slots=8`). An unknown key is an
error that names the nearest known one. This is the only file that reads `os.environ`.
"""

import dataclasses
import difflib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
from platformdirs import user_data_path

from .config_files import config_files, read_toml, state_directory
from .errors import InvalidConfig
from .giving_way import MOST_NICENESS
from .listening import http_address, tcp_address
from .settings import (
    BridgeConfig,
    ClientConfig,
    Config,
    DaemonConfig,
    FairnessConfig,
    JournalConfig,
    LimitsConfig,
    LogConfig,
    ModelConfig,
    PublishConfig,
    QuotasConfig,
    SamplerConfig,
    TrainerConfig,
)
from .tenant_numbers import tenant_numbers

__all__ = [
    "CRASH_AT",
    "BridgeConfig",
    "ClientConfig",
    "Config",
    "DaemonConfig",
    "FairnessConfig",
    "JournalConfig",
    "LimitsConfig",
    "LogConfig",
    "ModelConfig",
    "PublishConfig",
    "QuotasConfig",
    "SamplerConfig",
    "TrainerConfig",
    "config_from_json",
    "crash_setting",
    "hub_cache",
    "load_config",
    "set_process_environment",
    "subprocess_environment",
    "with_overrides",
]

_PREFIX = "LORACTL_"
# Read by name below; every other LORACTL_ variable is a key of the tree.
CRASH_AT = "LORACTL_CRASH_AT"
_PLAIN_VARIABLES = {"LORACTL_STATE_DIR", "LORACTL_CONFIG", CRASH_AT}
# Weights and the quantum: further apart, products of them and counts of rounds need not fit into a float.
_LEAST_SHARE, _LARGEST_SHARE = 1e-6, 1e6
_INTEGERS_END = 2**63


def load_config(
    *,
    overrides: Iterable[str] = (),
    state_dir: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Merge all sources into one validated tree.

    overrides: `section.key=value` strings, as given on the command line.

    Raises:
        InvalidConfig: an unknown key, a value of the wrong type or range, an unreadable file.
    """
    env = os.environ if environ is None else environ
    directory = state_dir or env.get("LORACTL_STATE_DIR") or str(user_data_path("loractl"))
    directory = state_directory(directory)
    tree: dict[str, Any] = {}
    for file in config_files(directory, env):
        _merge(tree, read_toml(file), source=str(file))
    for name, value in sorted(env.items()):
        if name.startswith(_PREFIX) and name not in _PLAIN_VARIABLES:
            _set(tree, _key_of(name), value, source=f"environment variable {name}")
    _override(tree, overrides)
    tree["state_dir"] = directory
    return _checked(_convert(tree))


def with_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """The same settings but for these, as in `load_config`. Raises InvalidConfig."""
    tree = dataclasses.asdict(config)
    _override(tree, overrides)
    return _checked(_convert(tree))


def config_from_json(text: str) -> Config:
    """Read back what `Config.to_json` wrote. Raises InvalidConfig: it is something else."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(f"these are no settings: {error}") from error
    if not isinstance(tree, dict):
        raise InvalidConfig("these are no settings: no JSON object")
    return _checked(_convert(tree))


def subprocess_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of the processes that a daemon starts, and of one that runs detached: ours, with large pages
    asked for, and `extra` on top."""
    return {**os.environ, "GLIBC_TUNABLES": _with_large_pages(os.environ.get("GLIBC_TUNABLES", "")), **extra}


def _with_large_pages(tunables: str) -> str:
    """What glibc is told, unless the user tells it something about large pages: malloc(3) is to ask for them, as
    most systems give them only to who asks. Touching memory for the first time costs as much as what is done with
    it, and large messages are mostly in new memory: one page of 2 MiB costs less than 512 small ones."""
    name = "glibc.malloc.hugetlb"
    return tunables if name in tunables else ":".join(filter(None, (tunables, f"{name}=1")))


def crash_setting() -> str:
    """At which of its `crash_points` this process is to die; "" for none."""
    return os.environ.get(CRASH_AT, "")


def hub_cache(environ: Mapping[str, str] | None = None) -> Path:
    """Where Hugging Face libraries keep what they got from the hub, found as they find it."""
    env = os.environ if environ is None else environ
    if named := env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        return Path(named).expanduser()
    home = env.get("HF_HOME") or f"{env.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(home).expanduser() / "hub"


def set_process_environment(values: Mapping[str, str]) -> Mapping[str, str]:
    """Set variables that a library reads, in an actor's own process, keeping the user's; returns what they are now."""
    return {name: os.environ.setdefault(name, value) for name, value in values.items()}


def _merge(tree: dict[str, Any], new: Mapping[str, Any], *, source: str, prefix: str = "") -> None:
    for key, value in new.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and not prefix:  # sections have keys, and these have values
            _merge(tree, value, source=source, prefix=f"{dotted}.")
        else:
            _set(tree, dotted, value, source=source)


def _override(tree: dict[str, Any], overrides: Iterable[str]) -> None:
    for item in overrides:
        dotted, equals, value = item.partition("=")
        if not equals:
            raise InvalidConfig(f"--config {item!r} has no '=': write section.key=value")
        _set(tree, dotted.strip(), value.strip(), source=f"--config {item}")


def _set(tree: dict[str, Any], dotted: str, value: object, *, source: str) -> None:
    if dotted not in _KNOWN_KEYS:
        near = difflib.get_close_matches(dotted, _KNOWN_KEYS, n=1, cutoff=0.0)
        raise InvalidConfig(f"{source}: there is no setting {dotted!r}; the nearest is {near[0]!r}")
    section, _, key = dotted.rpartition(".")
    (tree.setdefault(section, {}) if section else tree)[key] = value


def _key_of(variable: str) -> str:
    """The setting that an environment variable sets."""
    dotted = variable.removeprefix(_PREFIX).lower().replace("__", ".")
    if dotted not in _KNOWN_KEYS:
        known = {*_PLAIN_VARIABLES, *(_PREFIX + key.upper().replace(".", "__") for key in _KNOWN_KEYS)}
        near = difflib.get_close_matches(variable, sorted(known), n=1, cutoff=0.0)
        raise InvalidConfig(f"there is no environment variable {variable}; the nearest is {near[0]}")
    return dotted


def _convert(tree: Mapping[str, Any]) -> Config:
    try:
        # Not strict: environment and flags give text, which may stand for a number.
        return msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as error:
        _, _, dotted = str(error).rstrip("`").partition(" - at `$.")
        if dotted not in _KNOWN_KEYS:
            raise InvalidConfig(str(error)) from error
        section, _, key = dotted.rpartition(".")
        value = _shown((tree[section] if section else tree)[key])
        raise InvalidConfig(f"{dotted} is {value}: it must be {_wanted(_KNOWN_KEYS[dotted])}") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits
        raise InvalidConfig(f"a setting cannot be read: {error}") from error


def _shown(value: object) -> str:
    """For messages, which stay short."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or what is nested without end
        return "too large to show"
    return text if len(text) <= 80 else text[:80] + "…"


def _wanted(kind: Any) -> str:
    """What a setting of this type takes, in words."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(kind) or " or ".join(map(str, get_args(kind)))


def _checked(config: Config) -> Config:
    for section, value in _numbers(config):
        # What actors are handed, and what they send each other, holds integers of 64 bits.
        if not 0 <= value < (_INTEGERS_END if isinstance(value, int) else math.inf):
            raise InvalidConfig(f"{section} is {_shown(value)}: it must be a finite number and not negative")
    for dotted in _AT_LEAST_ONE:
        section, _, key = dotted.partition(".")
        if getattr(getattr(config, section), key) < 1:
            raise InvalidConfig(f"{dotted} must be at least 1")
    _check_ranges(config)
    if config.daemon.serves_http and config.daemon.http != "auto":
        http_address(config.daemon.http)
    for address in (config.daemon.listen, config.client.connect):
        if address:
            tcp_address(address)
    return config


def _check_ranges(config: Config) -> None:
    if not 0 < config.sampler.gpu_memory_utilization <= 1:
        raise InvalidConfig("sampler.gpu_memory_utilization must lie in (0, 1]")
    if config.daemon.niceness > MOST_NICENESS:
        raise InvalidConfig(f"daemon.niceness must lie from 0 to {MOST_NICENESS}")
    tenant_numbers(config.fairness.weights, what="fairness.weights", least=_LEAST_SHARE, most=_LARGEST_SHARE)
    tenant_numbers(config.fairness.priorities, what="fairness.priorities")
    if not _LEAST_SHARE <= config.fairness.quantum_ms <= _LARGEST_SHARE:
        raise InvalidConfig(f"fairness.quantum_ms must lie from {_LEAST_SHARE:g} to {_LARGEST_SHARE:g}")


def _numbers(config: Config) -> Iterable[tuple[str, float]]:
    for section, values in dataclasses.asdict(config).items():
        if isinstance(values, dict):
            for key, value in values.items():
                if isinstance(value, int | float):
                    yield f"{section}.{key}", value


def _known_keys() -> dict[str, Any]:
    """Every setting and its type."""
    keys: dict[str, Any] = {}
    for section, hint in get_type_hints(Config).items():
        if dataclasses.is_dataclass(hint):
            keys |= {f"{section}.{name}": kind for name, kind in get_type_hints(hint).items()}
    return keys


_KNOWN_KEYS = _known_keys()
_AT_LEAST_ONE = (
    "trainer.slots",
    "trainer.host_bytes",
    "trainer.max_rank",
    "trainer.data_parallel",
    "trainer.tensor_parallel",
    "trainer.logits_chunk",
    "model.max_sequence_tokens",
    "sampler.threads",
    "sampler.max_loras",
    "sampler.max_loaded",
    "sampler.max_concurrent",
    "sampler.max_batched_tokens",
    "publish.keep_versions",
    "daemon.restart_limit",
    "bridge.ephemeral_samplers",
    "limits.frames",
    "limits.inflight_per_tenant",
)
