"""Places where a process dies when it is told to, and only then."""

import subprocess
import sys
from pathlib import Path

import pytest
from loractl.bus.config import load_config, subprocess_environment

ROOT = Path(__file__).resolve().parents[2]
PASSES = "from loractl.bus.crash_points import crash_point\nfor i in range(3):\n    crash_point('here')\n    print(i)"


@pytest.mark.parametrize(
    ("setting", "status", "said"),
    [
        ("", 0, "0 1 2"),
        ("there", 0, "0 1 2"),
        ("here", -9, ""),
        ("here:3", -9, "0 1"),
        ("here:4", 0, "0 1 2"),
        ("there, here:2", -9, "0"),
    ],
)
def test_a_process_dies_where_it_was_told_to_and_nowhere_else(setting: str, status: int, said: str) -> None:
    environment = subprocess_environment({"PYTHONPATH": str(ROOT / ".pkg"), "LORACTL_CRASH_AT": setting})

    ended = subprocess.run(
        [sys.executable, "-u", "-c", PASSES], env=environment, capture_output=True, text=True, check=False
    )

    assert (ended.returncode, ended.stdout.split()) == (status, said.split())


def test_the_variable_is_no_setting() -> None:
    assert load_config(state_dir="x", environ={"LORACTL_CRASH_AT": "here"}) == load_config(
        state_dir="x", environ={}
    )
