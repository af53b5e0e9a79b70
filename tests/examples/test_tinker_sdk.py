"""The shortest script with the SDK, as a person runs it against a daemon."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loractl.tests.tinker_bridge.served import Served, serving

pytest.importorskip("tinker", reason="the example is the SDK's")

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "tinker_sdk.py"


@pytest.fixture
def served() -> Iterator[Served]:
    with serving("sampler.engine=torch") as running:
        yield running


def test_it_learns_its_rows_and_says_one_of_them(served):
    # The directory's tokenizer is found without a hub's cache, because the service is on this machine.
    ran = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=served.environment(HF_HUB_CACHE=str(served.hub_cache / "none")),
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    *steps, saved, said = ran.stdout.splitlines()
    losses = [float(line.split()[-1]) for line in steps]
    assert losses[-1] < losses[0] / 10
    assert saved.startswith("saved as tinker://")
    assert saved.endswith("/weights/matey")
    assert said == "What is the sea? A wide salt road, matey."
