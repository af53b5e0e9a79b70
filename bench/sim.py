"""Thousands of tenants on a virtual clock: the real broker and the trainer's real decisions, no model.

Requests are real frames through the real broker core, and what runs when, with whom, and which states
move is decided by the trainer's own code; only passes and copies are replaced by what they cost. Beside
it, with the same tenants, arrivals and costs: "fifo", operations in the order of their arrival with one
adapter on the device at a time, as the founding systems serve. A step is a forward_backward and its
optim_step; light tenants send 1x16 positions, heavy ones 64x256.

Scenarios: "open", Poisson arrivals whose tenants are drawn by Zipf's law; "closed", every tenant has a
step under way and thinks between two; "backlog", a few tenants, every third of them heavy and every other
of weight 2, who always have more to do. "light" is as "open" with light tenants only, who ask for more
than the machine can do. Waits are from sending an operation to the beginning of its first piece; fairness
is Jain's index over trainer time by weight of those who were backlogged all the time. All is of the
virtual clock and depends on the seed alone, but us, which is measured processor time.

Each way serves others when tenants are backlogged, so both are shown for the same work: all that ran under
"fair". work s is how long the trainer takes for it, with the copies that the way costs, and tokens/s what
that makes. --json has what ran in each way's own time besides, and `gain`, what it takes alone and without
copies over what it took.

--measure takes the costs on this machine first (a minute; needs torch), the presets of which were taken so.

    python bench/sim.py [--quick] [--json] [--tenants 10000] [--seed 0] [--measure float32|bfloat16]
                        [--machine two-cores|two-cores-float32|large-gpu]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".pkg"))

from simulation.costs import PRESETS, Machine
from simulation.record import Record, percentile
from simulation.scenarios import SCENARIOS, Scenario, scenario
from simulation.simulate import WAYS, simulate


@dataclass(frozen=True, kw_only=True)
class Result:
    """One scenario, one way. Everything is of the virtual clock but us, which is measured: of all that is
    decided in a turn, of all that lanes and notices do in it, and of each message in the broker.

    work_s, work_tokens_per_s: of all that ran under "fair". tokens_per_s, gain: of what ran this way."""

    scenario: str
    way: str
    virtual_s: float
    steps: int
    work_s: float
    work_tokens_per_s: float
    tokens_per_s: float
    gain: float
    wait_p50_s: float
    wait_p99_s: float
    light_wait_p50_s: float
    light_wait_p99_s: float
    passes: int
    shared_passes: int
    pieces: int
    swaps: int
    copied_bytes: int
    disk_bytes: int
    copies_waited_s: float
    jain: float | None
    compared_tenants: int
    decision_us: float
    decision_p99_us: float
    keeping_us: float
    broker_us: float
    answered: int
    unanswered: int
    answered_twice: int
    failures: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, on stdout")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=0, help="of each scenario; default twice the tenants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--zipf", type=float, default=1.0, help="exponent of the law of popularity")
    parser.add_argument("--heavy", type=float, default=0.02, help="share of heavy tenants")
    parser.add_argument("--load", type=float, default=0.9, help="asked for, of what full passes could do")
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="default all")
    parser.add_argument("--machine", choices=PRESETS, default="two-cores", help="whose costs")
    parser.add_argument(
        "--measure", choices=("float32", "bfloat16"), help="this machine's costs, in this type"
    )
    for field in fields(Machine):
        if field.type in (int, float):
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, help="in its place")
    arguments = parser.parse_args()
    machine = chosen_machine(arguments)
    results = []
    for name in arguments.scenario or SCENARIOS:
        made = scenario(
            name,
            machine,
            tenants=arguments.tenants,
            steps=(arguments.steps or 2 * arguments.tenants) // (10 if arguments.quick else 1),
            seed=arguments.seed,
            exponent=arguments.zipf,
            heavy=arguments.heavy,
            load=arguments.load,
        )
        records = {way: simulate(made, machine, way) for way in WAYS}
        results += [result(made, way, record, records["fair"]) for way, record in records.items()]
    report(results, machine, arguments)


def chosen_machine(arguments: argparse.Namespace) -> Machine:
    """A preset, or what is measured now, with what flags put in its place."""
    given = {
        field.name: value
        for field in fields(Machine)
        if (value := getattr(arguments, field.name, None)) is not None
    }
    return replace(measured(arguments.measure) if arguments.measure else PRESETS[arguments.machine], **given)


def measured(dtype: str) -> Machine:
    from simulation import measuring  # with torch, which nothing else here needs

    return measuring.measured(dtype)


def result(made: Scenario, way: str, record: Record, work: Record) -> Result:
    """work: what ran under "fair"; any way needs for it what it takes alone, over its gain."""
    waits, light = record.waits_s(), record.waits_s(light=True)
    answered = len(record.asked) - record.unanswered()
    work_s = work.alone_ms / 1e3 / record.gain()
    return Result(
        scenario=made.name,
        way=way,
        virtual_s=record.ended_at,
        steps=len(record.asked) // 2,
        work_s=work_s,
        work_tokens_per_s=work.positions / work_s,
        tokens_per_s=record.tokens_per_s(),
        gain=record.gain(),
        wait_p50_s=percentile(waits, 50),
        wait_p99_s=percentile(waits, 99),
        light_wait_p50_s=percentile(light, 50),
        light_wait_p99_s=percentile(light, 99),
        passes=record.passes,
        shared_passes=record.shared_passes,
        pieces=record.pieces,
        swaps=record.swaps,
        copied_bytes=record.copied_bytes,
        disk_bytes=record.disk_bytes,
        copies_waited_s=record.waited_for_copies_s,
        jain=record.jain(),
        compared_tenants=len(record.served_in_window()),
        decision_us=record.deciding.mean(),
        decision_p99_us=record.deciding.p99(),
        keeping_us=record.keeping.mean(),
        broker_us=record.brokering.mean(),
        answered=answered,
        unanswered=record.unanswered(),
        answered_twice=record.answers_too_many,
        failures=record.failures,
    )


# --- the report ----------------------------------------------------------------------------------


def report(results: Sequence[Result], machine: Machine, arguments: argparse.Namespace) -> None:
    if arguments.json:
        whole = {
            "tenants": arguments.tenants,
            "seed": arguments.seed,
            "machine": asdict(machine),
            "results": [asdict(each) for each in results],
        }
        print(json.dumps(whole, indent=1))
        return
    print(f"{arguments.tenants} tenants, seed {arguments.seed}; costs {machine.origin}:")
    print(costs(machine))
    print(
        f"{'':15}{'same work':>16}{'wait s':>15}{'light wait s':>16}{'pieces':>22}{'decision us':>45}\n"
        "scenario  way     work s tokens/s   p50     p99    p50     p99   passes shared  a pass   swaps   GiB"
        "  disk  Jain (of)    mean   p99 lanes broker"
    )
    for each in results:
        print(line(each))
    for name in dict.fromkeys(each.scenario for each in results):
        print(comparison([each for each in results if each.scenario == name]))


def costs(machine: Machine) -> str:
    return (
        f"a pass {machine.pass_ms:.4g} ms + {machine.adapter_ms:.3g} ms an adapter + {machine.token_ms:.3g} ms a "
        f"position, {machine.pass_tokens} at most;\na step {machine.step_ms_per_million:.3g} ms a million "
        f"parameters; copies {machine.copy_bytes_per_ms / 1e6:.3g} GB/s, disk "
        f"{machine.disk_bytes_per_ms / 1e6:.3g} GB/s\n"
    )


def line(each: Result) -> str:
    jain = f"{each.jain:.2f} {f'({each.compared_tenants})':5}" if each.jain is not None else "   - (0) "
    return (
        f"{each.scenario:8} {each.way:5} {each.work_s:8.0f} {each.work_tokens_per_s:8.0f}"
        f"{each.wait_p50_s:6.1f} {each.wait_p99_s:7.1f} {each.light_wait_p50_s:6.1f} {each.light_wait_p99_s:7.1f} "
        f"{each.passes:8} {each.shared_passes / max(each.passes, 1):6.0%} {each.pieces / max(each.passes, 1):7.1f} "
        f"{each.swaps:7} {each.copied_bytes / 2**30:5.0f} {each.disk_bytes / 2**30:5.0f}  {jain} "
        f"{each.decision_us:6.0f} {each.decision_p99_us:5.0f} {each.keeping_us:5.0f} {each.broker_us:6.0f}"
    )


def comparison(ways: Sequence[Result]) -> str:
    by_way = {each.way: each for each in ways}
    fair, fifo = by_way["fair"], by_way["fifo"]
    return (
        f"{fair.scenario}: the same work in {fair.work_s / fifo.work_s:.2f} of FIFO's time; light tenants' wait "
        f"p50 {fair.light_wait_p50_s / max(fifo.light_wait_p50_s, 1e-9):.4f}, "
        f"p99 {fair.light_wait_p99_s / max(fifo.light_wait_p99_s, 1e-9):.4f} of FIFO's"
    )


if __name__ == "__main__":
    main()
