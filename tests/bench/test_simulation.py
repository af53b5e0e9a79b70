"""Simulated crowds: the broker's and the trainer's real decisions keep their promises on a virtual clock."""

import json
import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from simulation.costs import LARGE_GPU, TWO_CORES, Machine
from simulation.record import Record
from simulation.scenarios import Scenario, backlog, scenario, service
from simulation.simulate import simulate
from simulation.tenants import HEAVY, LIGHT, ClosedLoop, Tenant

BENCH = Path(__file__).resolve().parents[2] / "bench"
MIDDLING = (256, 256)


def crowd(name: str, tenants: int, steps: int) -> Scenario:
    return scenario(name, TWO_CORES, tenants=tenants, steps=steps, seed=3, exponent=1.0, heavy=0.02, load=0.9)


def served_ms(record: Record) -> dict[Tenant, float]:
    return {record.tenants[number]: ms for number, ms in record.served_in_window().items()}


@pytest.mark.parametrize("way", ["fair", "fifo"])
@pytest.mark.parametrize("name", ["open", "closed"])
def test_every_request_is_answered_exactly_once(name: str, way: str) -> None:
    record = simulate(crowd(name, tenants=300, steps=400), TWO_CORES, way)

    assert len(record.asked) == 800
    assert (record.unanswered(), record.answers_too_many, record.failures) == (0, 0, 0)
    assert record.positions == sum(each.tenant.positions for each in record.asked.values()) / 2


@pytest.mark.parametrize(
    ("machine", "sizes", "full_passes"),
    [
        (TWO_CORES, (LIGHT,), 40),
        (TWO_CORES, (HEAVY, LIGHT, LIGHT), 100),
        (TWO_CORES, (LIGHT, MIDDLING, HEAVY), 100),
        (LARGE_GPU, (LIGHT, MIDDLING, HEAVY), 50),
    ],
    ids=["light ones", "heavy and light ones", "three sizes", "three sizes on a large gpu"],
)
def test_backlogged_tenants_get_equal_time_whatever_they_send(
    machine: Machine, sizes: tuple[tuple[int, ...], ...], full_passes: int
) -> None:
    equal = backlog(machine, seed=0, full_passes=full_passes, sizes=sizes, weights=(1.0,))

    record = simulate(equal, machine, "fair")

    jain = record.jain()
    assert len(record.served_in_window()) == len(record.tenants)
    assert jain is not None
    assert jain > 0.95


def test_twice_the_weight_is_twice_the_time() -> None:
    record = simulate(backlog(TWO_CORES, seed=0, full_passes=200), TWO_CORES, "fair")

    time_of = served_ms(record)
    for lengths in (LIGHT, HEAVY):
        single, double = (
            statistics.fmean(
                ms for each, ms in time_of.items() if each.lengths == lengths and each.weight == weight
            )
            for weight in (1, 2)
        )
        assert double / single == pytest.approx(2, rel=0.2)


def test_sharing_passes_does_the_work_of_light_tenants_in_less_than_half_of_fifos_time() -> None:
    asked = partial(crowd, "light", tenants=300, steps=600)

    fair, fifo = (simulate(asked(), TWO_CORES, way) for way in ("fair", "fifo"))

    assert fair.shared_passes > 0 == fifo.shared_passes
    assert fair.gain() > 2 * fifo.gain()
    assert fair.tokens_per_s() > 2 * fifo.tokens_per_s()


def test_every_scenario_is_reported_both_ways_and_the_same_for_a_seed() -> None:
    first, second = (report(hash_seed) for hash_seed in ("1", "2"))

    ways = [(name, way) for name in ("open", "light", "closed", "backlog") for way in ("fair", "fifo")]
    assert [(each["scenario"], each["way"]) for each in first] == ways
    assert first == second


def report(hash_seed: str) -> list[dict[str, object]]:
    """What `bench/sim.py` prints of a small crowd, without what it measured."""
    run = subprocess.run(
        [sys.executable, str(BENCH / "sim.py"), "--quick", "--json", "--tenants", "100", "--seed", "7"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )
    assert run.returncode == 0, run.stderr
    return [
        {name: value for name, value in each.items() if not name.endswith("_us")}
        for each in json.loads(run.stdout)["results"]
    ]


def rested_waits_s(record: Record, rest_s: float) -> list[float]:
    """Of light tenants' operations, but for steps sent so soon behind the last one that it is still to be
    paid for."""
    last: dict[Tenant, float] = {}
    waits_s: list[float] = []
    asked = list(record.asked.values())
    for pair in zip(asked[::2], asked[1::2], strict=True):
        tenant, sent = pair[0].tenant, pair[0].sent
        if tenant.light and sent - last.get(tenant, -rest_s) >= rest_s:
            waits_s += [each.begun - each.sent for each in pair if each.begun is not None]
        last[tenant] = max(each.answered or sent for each in pair)
    return waits_s


def test_a_light_tenant_waits_for_one_pass_of_the_heavy_ones_and_its_own() -> None:
    heavy = [Tenant(number, HEAVY) for number in range(8)]
    light = [Tenant(number, LIGHT) for number in range(8, 12)]
    tenants = [*heavy, *light]
    think_s = [0.0 if tenant in heavy else 20.0 for tenant in tenants]
    mixed = Scenario(
        name="light among heavy",
        tenants=tenants,
        config=service(TWO_CORES),
        arrivals=partial(ClosedLoop, tenants, think_s=think_s, seed=5),
        until_s=800.0,
    )

    record = simulate(mixed, TWO_CORES, "fair")

    full_pass_s = TWO_CORES.pass_cost_ms(TWO_CORES.pass_tokens) / 1e3
    own_pass_s = TWO_CORES.pass_cost_ms(len(light) * 16, len(light)) / 1e3
    waits_s = rested_waits_s(record, 3 * full_pass_s)
    assert len(waits_s) > 100
    assert max(waits_s) < 1.1 * full_pass_s + own_pass_s
    assert max(simulate(mixed, TWO_CORES, "fifo").waits_s(light=True)) > 10 * max(waits_s)
