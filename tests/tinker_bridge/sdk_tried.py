"""Runs sdk_smoke.py with one version of the SDK and says what is wrong with what came of it."""

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loractl.tests.tinker_bridge.served import MODEL, Served

_SCRIPT = Path(__file__).with_name("sdk_smoke.py")
_PATIENCE_S = 120
# Versions differ in how many datums they send at once, and so in the order of sums.
_RELATIVE = 1e-5


@dataclass(frozen=True)
class Tried:
    """steps: name to "ok", "absent" or an error. numbers: what every version must get alike."""

    version: str
    steps: Mapping[str, str]
    numbers: Mapping[str, Sequence[float]]

    @property
    def problems(self) -> list[str]:
        return [
            f"{step}: {outcome}" for step, outcome in self.steps.items() if outcome not in ("ok", "absent")
        ]

    @property
    def absent(self) -> list[str]:
        return [step for step, outcome in self.steps.items() if outcome == "absent"]

    def differences(self, other: "Tried") -> list[str]:
        """Numbers that are not the other's."""
        return [name for name, found in self.numbers.items() if not _near(found, other.numbers.get(name, ()))]


def tried(served: Served, sdk: Path | None = None) -> Tried:
    """sdk: the directory of a version that is to be used instead of the installed one."""
    environment = served.environment(**({"PYTHONPATH": str(sdk)} if sdk is not None else {}))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(_SCRIPT), MODEL],
        env=environment,
        cwd=served.model,  # where nothing else can be imported from
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Tried(**json.loads(done.stdout.splitlines()[-1]))


def _near(found: Sequence[float], expected: Sequence[float]) -> bool:
    return len(found) == len(expected) and all(
        math.isclose(one, other, rel_tol=_RELATIVE) for one, other in zip(found, expected, strict=True)
    )
