"""Where settings are written: the state directory, and the file that lies in it or is named."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import InvalidConfig

# The reader of TOML takes time by the square of a key's parts.
_MOST_FILE_BYTES = 64 * 2**10


def state_directory(written: str) -> str:
    """An absolute path; it need not be there yet. Raises InvalidConfig."""
    try:
        directory = Path(written).expanduser().absolute()
        directory.lstat()
    except FileNotFoundError:
        pass  # it will be made
    except (OSError, ValueError, RuntimeError) as error:  # a name without end, a NUL, ~ of nobody
        raise InvalidConfig(f"{written[:80]!r} cannot be the state directory: {error}") from error
    return str(directory)


def config_files(state_dir: str, env: Mapping[str, str]) -> list[Path]:
    """Those to read. Raises InvalidConfig: one is named that is not there."""
    if named := env.get("LORACTL_CONFIG"):
        if not _is_file(Path(named)):
            raise InvalidConfig(f"LORACTL_CONFIG names {named!r}, which is not a file")
        return [Path(named)]
    default = Path(state_dir) / "loractl.toml"
    return [default] if _is_file(default) else []


def read_toml(file: Path) -> dict[str, Any]:
    """Raises InvalidConfig."""
    try:
        data = file.read_bytes()
        if len(data) > _MOST_FILE_BYTES:
            raise InvalidConfig(f"{file} is larger than {_MOST_FILE_BYTES} bytes: settings are few lines")
        return tomllib.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise InvalidConfig(f"cannot read {file}: it is nested too deeply") from error
    except (OSError, ValueError) as error:  # no text, no TOML, or a number without end
        raise InvalidConfig(f"cannot read {file}: {error}") from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name without end
        return False
