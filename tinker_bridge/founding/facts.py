"""What this API says about adapters and losses. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from ...bus.loss_settings import LOSS_SETTINGS
from ...bus.messages import AdapterDetails, LossName
from ..records import Json, RunRecord

_POLICY_INPUTS = ("target_tokens", "logprobs", "advantages")


def adapters_facts(runs: Sequence[RunRecord], details: Sequence[AdapterDetails]) -> list[Json]:
    """Runs whose adapter the trainer has, oldest first."""
    by_id = {each.adapter: each for each in details}
    return [
        adapter_facts(run, by_id[run.adapter])
        for run in sorted(runs, key=lambda run: run.created_unix_s)
        if run.adapter in by_id
    ]


def adapter_facts(run: RunRecord, details: AdapterDetails) -> dict[str, Json]:
    """step: optimizer steps done. version: newest one that can be sampled, 0 for none yet."""
    return {
        **run_facts(run),
        "step": details.step,
        "version": details.version,
        "checkpoint_step": details.checkpoint_step,
        "parameters": details.parameters,
        "state_bytes": details.state_bytes,
        "served_by": details.served_by,
    }


def run_facts(run: RunRecord) -> dict[str, Json]:
    return {
        "model_id": run.id,
        "base_model": run.base_model,
        **asdict(run.lora),
        "created_unix_s": run.created_unix_s,
        "session_id": run.parent or None,
    }


def losses_facts() -> list[Json]:
    return [_loss_facts(name, settings) for name, settings in LOSS_SETTINGS.items()]


def _loss_facts(name: LossName, settings: Mapping[str, float]) -> dict[str, Json]:
    """chats: whether rows of chats can be trained with it, of which the server makes the inputs."""
    inputs: list[Json] = ["target_tokens", "weights"]
    optional: list[Json] = ["weights"]
    if name != "cross_entropy":
        inputs = [*_POLICY_INPUTS, "weights", "mask"]
        optional = ["weights", "mask"]
    if name == "gspo":
        inputs.append("sequence_ratio_mask")
        optional.append("sequence_ratio_mask")
    return {
        "name": name,
        "inputs": inputs,
        "optional_inputs": optional,
        "settings": dict(settings),
        "chats": name == "cross_entropy",
    }
