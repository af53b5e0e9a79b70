"""The measurement of the bus runs and reports every way at every number of clients."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench" / "bus.py"


def test_the_quick_measurement_reports_every_way() -> None:
    run = subprocess.run(
        [sys.executable, str(BENCH), "--quick", "--json"], capture_output=True, text=True, timeout=120
    )

    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    assert [(each["way"], each["clients"]) for each in results] == [
        (way, clients) for clients in (1, 16, 64) for way in ("broker", "relay", "lean relay")
    ]
    assert all(0 < each["p50_us"] <= each["p99_us"] for each in results)
