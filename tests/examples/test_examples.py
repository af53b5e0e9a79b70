"""The examples, as a person runs them, in their shortest form against one daemon."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from loractl.tests.tinker_bridge.served import Served, serving

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LIMIT_S = 240


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    # The embedded engine: vllm has tests of its own, and takes longer to start.
    with serving("sampler.engine=torch") as running:
        yield running


def run(service: Served, name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env=service.environment(COLUMNS="120"),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def adapters_left(service: Served) -> list[object]:
    found = httpx.get(f"{service.url}/adapters", headers={"X-API-Key": service.key})
    return list(found.json()["adapters"])


def test_three_users_train_and_sample(service):
    out = run(service, "three_users.py")

    for name in ("alice", "bob", "carol"):
        losses = [float(loss) for loss in re.findall(rf"{name} +step \d: loss ([\d.]+)", out)]
        assert len(losses) == 3
        assert losses[-1] < losses[0]
        assert re.search(rf"{name} +What is the sea\?", out)
    assert adapters_left(service) == []


def test_the_full_one_tells_times_and_the_history_of_losses(service):
    out = run(service, "three_users_full.py", "--steps", "3")

    assert len(re.findall(r"\d\d:\d\d:\d\d +[\d.]+ s +(?:alice|bob|carol) +step", out)) == 9
    assert "█" in out
    assert "what became of them" in out
    assert adapters_left(service) == []


def test_many_users_are_measured_alone_and_together(service):
    out = run(service, "many_users.py", "3", "--steps", "1", "--rounds", "1")

    assert out.count("3 succeeded, 0 failed") == 2
    alone, together, speedup = (
        float(re.search(pattern, out)[1])
        for pattern in (r"summed: ([\d.]+) s", r"all together: ([\d.]+) s", r"speed-up ([\d.]+)")
    )
    assert speedup == pytest.approx(alone / together, rel=0.05)
    assert adapters_left(service) == []


def test_the_small_client_shows_losses_and_what_errors_look_like(service):
    out = run(service, "http_client.py")

    first, *_, last = (float(loss) for loss in re.search(r"losses: (.*)", out)[1].split())
    assert last < first
    assert out.count("refused (400)") == 3
    assert "failed (user): " in out
    assert adapters_left(service) == []


def test_a_key_that_is_not_known_ends_the_example_with_its_reason(service):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "three_users.py"), "--url", service.url, "--key", "tml-wrong"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("error: this API key is not known")


def test_the_sdks_shortest_script_learns_its_rows_and_says_one_of_them(service):
    pytest.importorskip("tinker", reason="the example is the SDK's")

    # The directory's tokenizer is found without a hub's cache, because the service is on this machine.
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / "tinker_sdk.py")],
        env=service.environment(HF_HUB_CACHE=str(service.hub_cache / "none")),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    *steps, saved, said = ran.stdout.splitlines()
    losses = [float(line.split()[-1]) for line in steps]
    assert losses[-1] < losses[0] / 10
    assert saved.startswith("saved as tinker://")
    assert saved.endswith("/weights/matey")
    assert said == "What is the sea? A wide salt road, matey."
