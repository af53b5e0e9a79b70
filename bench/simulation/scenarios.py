"""The scenarios: tenants, how their steps arrive, and the settings of the service they meet."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from loractl.bus.config import Config

from .costs import Machine
from .tenants import HEAVY, LIGHT, Arrivals, ClosedLoop, OpenLoop, Tenant, mixed_tenants, popularity

SCENARIOS = ("open", "light", "closed", "backlog")
_BACKLOGGED = 24


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """arrivals: made anew for each simulation, which uses them up. steps, until_s: no more are sent, and
    none later."""

    name: str
    tenants: Sequence[Tenant]
    config: Config
    arrivals: Callable[[], Arrivals]
    steps: int = 10**9
    until_s: float = math.inf


def scenario(
    name: str,
    machine: Machine,
    *,
    tenants: int,
    steps: int,
    seed: int,
    exponent: float,
    heavy: float,
    load: float,
) -> Scenario:
    if name == "backlog":
        return backlog(machine, seed=seed, full_passes=steps // 5)
    crowd = mixed_tenants(tenants, 0.0 if name == "light" else heavy, seed)
    shares = popularity(tenants, exponent)
    positions = float(np.dot(shares, [each.positions for each in crowd]))
    per_s = load * 1000 * machine.pass_tokens / machine.pass_cost_ms(machine.pass_tokens) / positions
    arrivals: Callable[[], Arrivals]
    if name == "closed":
        # If nobody ever waited, they would together send per_s steps a second.
        think_s = [float(each) for each in 1 / (per_s * shares)]
        arrivals = partial(ClosedLoop, crowd, think_s=think_s, seed=seed)
    else:
        arrivals = partial(OpenLoop, crowd, steps=steps, per_s=per_s, exponent=exponent, seed=seed)
    return Scenario(name=name, tenants=crowd, steps=steps, config=service(machine), arrivals=arrivals)


def backlog(
    machine: Machine,
    *,
    seed: int,
    full_passes: int,
    sizes: Sequence[tuple[int, ...]] = (HEAVY, LIGHT, LIGHT),
    weights: Sequence[float] = (1.0, 2.0),
) -> Scenario:
    """Tenants of these sizes and weights in turn, with two steps under way always, for as long as so many
    full passes take."""
    crowd = [Tenant(i, sizes[i % len(sizes)], weight=weights[i % len(weights)]) for i in range(_BACKLOGGED)]
    return Scenario(
        name="backlog",
        tenants=crowd,
        until_s=full_passes * machine.pass_cost_ms(machine.pass_tokens) / 1e3,
        config=service(machine, crowd),
        arrivals=partial(ClosedLoop, crowd, think_s=[0.0] * len(crowd), seed=seed, in_flight=2),
    )


def service(machine: Machine, tenants: Sequence[Tenant] = ()) -> Config:
    """The settings as they come, but for the machine's memory and these tenants' weights."""
    config = Config()
    weights = ", ".join(f"{each.id}={each.weight:g}" for each in tenants if each.weight != 1)
    return replace(
        config,
        trainer=replace(
            config.trainer,
            pass_tokens=machine.pass_tokens,
            device_bytes=machine.device_bytes,
            host_bytes=machine.host_bytes,
            disk_bytes=machine.disk_bytes,
        ),
        fairness=replace(config.fairness, weights=weights),
    )
