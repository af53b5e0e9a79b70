"""What a simulated trainer answers: messages of the right kind and size, without numbers in them."""

from functools import cache

import numpy as np
from loractl.bus.ids import LaneId
from loractl.bus.messages import (
    AdapterCreated,
    AdapterDetails,
    ForwardBackward,
    LoraSpec,
    PassResult,
    StepResult,
)

from .costs import Machine
from .tenants import Tenant


def lane_of(tenant: Tenant) -> LaneId:
    return LaneId(f"ln-{tenant.number:032x}")


def created(tenant: Tenant, machine: Machine) -> AdapterCreated:
    details = AdapterDetails(
        adapter=tenant.adapter,
        tenant=tenant.id,
        name="one",
        lora=LoraSpec(rank=tenant.rank, alpha=16.0, seed=tenant.number),
        step=0,
        version=0,
        checkpoint_step=-1,
        parameters=machine.rank_parameters * tenant.rank,
        state_bytes=machine.state_bytes(tenant.rank),
        row_bytes=machine.row_bytes(tenant.rank),
        created_unix_s=0.0,
    )
    return AdapterCreated(details=details, lane=lane_of(tenant))


def passed(asked: ForwardBackward) -> PassResult:
    return _passed(len(asked.tokens))


def stepped() -> StepResult:
    return StepResult(applied=True, step=1, grad_norm=1.0, learning_rate=1e-4, tokens=0)


@cache
def _passed(positions: int) -> PassResult:
    zeros = np.zeros(positions, dtype=np.float32)
    return PassResult(logprobs=zeros, loss_terms=zeros, metrics={"loss:sum": 0.0})
