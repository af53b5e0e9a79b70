"""The scenarios: tenants, how their steps arrive, and the settings of the service they meet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from loractl.bus.config import Config

from .costs import Machine
from .tenants import HEAVY, LIGHT, Arrivals, ClosedLoop, OpenLoop, Tenant, mixed_tenants, popularity

SCENARIOS = ("open", "light", "closed", "backlog")
_BACKLOGGED = 24


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """steps, until_s: no more are sent, and none later. recipe: how they arrive."""

    name: str
    tenants: Sequence[Tenant]
    steps: int
    config: Config
    recipe: "Recipe"
    until_s: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How steps arrive. per_s: steps a second, in an open loop. think_s: of the median tenant, in a closed one."""

    seed: int
    exponent: float = 0.0
    per_s: float = 0.0
    think_s: float = 0.0
    in_flight: int = 1

    def arrivals(self, tenants: Sequence[Tenant], steps: int) -> Arrivals:
        if self.per_s:
            return OpenLoop(tenants, steps=steps, per_s=self.per_s, exponent=self.exponent, seed=self.seed)
        return ClosedLoop(
            tenants,
            think_s=self.think_s,
            exponent=self.exponent,
            seed=self.seed,
            in_flight=self.in_flight,
        )


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
        return backlog(machine, seed=seed, full_passes=steps // 20)
    crowd = mixed_tenants(tenants, 0.0 if name == "light" else heavy, seed)
    shares = popularity(tenants, exponent)
    positions = float(np.dot(shares, [each.positions for each in crowd]))
    per_s = load * 1000 * machine.pass_tokens / machine.pass_cost_ms(machine.pass_tokens) / positions
    if name == "closed":
        # If nobody ever waited, they would together send per_s steps a second.
        recipe = Recipe(seed=seed, exponent=exponent, think_s=1 / (per_s * float(np.median(shares))))
    else:
        recipe = Recipe(seed=seed, exponent=exponent, per_s=per_s)
    return Scenario(name=name, tenants=crowd, steps=steps, config=service(machine), recipe=recipe)


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
    settings = ", ".join(f"{each.id}={each.weight:g}" for each in crowd if each.weight != 1)
    return Scenario(
        name="backlog",
        tenants=crowd,
        steps=10**9,
        until_s=full_passes * machine.pass_cost_ms(machine.pass_tokens) / 1e3,
        config=service(machine, weights=settings),
        recipe=Recipe(seed=seed, in_flight=2),
    )


def service(machine: Machine, *, weights: str = "") -> Config:
    """The settings as they come, but for the machine's memory."""
    config = Config()
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
