"""Which versions of the `tinker` SDK work with this server.

    python bench/sdk_versions.py [VERSION …]

Starts a daemon of its own with a tiny model, installs each version, without what it requires, into a
temporary directory, and runs tests/tinker_bridge/sdk_smoke.py with it: training, sampling, checkpoints,
lists. Every version must get the numbers of the installed one. Ends with 1 when one that is said to
work does not.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".pkg"))

from loractl.client.interrupts import interrupt_when_ended
from loractl.tests.tinker_bridge.sdk_tried import Tried, tried
from loractl.tests.tinker_bridge.served import serving
from loractl.tinker_bridge.sdk_versions import version_warning
from rich.console import Console
from rich.table import Table

# Each where the wire changed, or shortly before; 0.5.1 is the last that does not work.
_TEXT = (
    "0.5.1 0.6.0 0.8.1 0.14.0 0.16.1 0.18.2 0.22.7 0.24.1 0.25.0 0.28.1 0.30.4 0.33.1 0.35.0 0.36.0 0.38.0"
)
VERSIONS = _TEXT.split()


def install(version: str, root: Path) -> Path:
    """Into a directory of its own; what it requires comes from this environment."""
    target = root / version
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--target", str(target), f"tinker=={version}"], check=True)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "versions", nargs="*", metavar="VERSION", help="default: those where the wire changed"
    )
    wanted: list[str] = parser.parse_args().versions
    interrupt_when_ended()
    table = Table("version", "works", "absent in it", "what is wrong")
    broken = []
    with serving() as served, tempfile.TemporaryDirectory() as root:
        installed = tried(served)
        for version in wanted or VERSIONS:
            found = tried(served, install(version, Path(root)))
            problems = wrong(found, installed)
            works = "no" if problems else "yes"
            table.add_row(version, works, ", ".join(found.absent), "\n".join(problems))
            if problems and version_warning(version) is None:
                broken.append(version)
    Console(width=150).print(table)
    return 1 if broken else 0


def wrong(found: Tried, installed: Tried) -> list[str]:
    return found.problems + [f"another {name} than the newest" for name in found.differences(installed)]


if __name__ == "__main__":
    sys.exit(main())
