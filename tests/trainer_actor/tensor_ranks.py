"""Two tensor parallel ranks on the lab's models: what each of them runs, and what rank 0 found, in files.

`python -m loractl.tests.trainer_actor.tensor_ranks MODELS FILES`, two directories. The second rank is a fork of
the first: the libraries are read once.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import torch
import torch.distributed as dist
from loractl.bus.errors import InvalidConfig
from loractl.tests.trainer_actor.compute_lab import (
    Lab,
    adam,
    batch,
    begin,
    gradients,
    spec,
    state_in,
    weights,
)
from loractl.trainer_actor.compositions import RunShape
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.members import Member, cut, filler, rows_of, split_rows
from loractl.trainer_actor.model_pass import run_members
from loractl.trainer_actor.packing import pack
from loractl.trainer_actor.passes import PartResult, PassPart
from loractl.trainer_actor.row_views import GradientRow
from loractl.trainer_actor.tensor_group import tensor_group
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

RANKS = 2
FAMILIES = ("llama", "llama3", "qwen2", "qwen3", "qwen3-untied", "odd", "odd-tied")
LORAS = [
    spec(rank=4, seed=1),
    spec(rank=16, seed=2, train_mlp=False),
    spec(rank=1, seed=3, train_attn=False, train_unembed=False),
    spec(rank=8, seed=4, train_mlp=False, train_attn=False),
]
# Every way to train an adapter, ragged, forward only, and a loss over whole sequences.
PARTS = [
    batch(9, [30, 6], slot=3, lora=LORAS[0]),
    batch(5, [1, 15], slot=0, lora=LORAS[1], loss="ppo"),
    batch(7, [17, 17, 40], slot=1, lora=LORAS[2], loss="gspo"),
    batch(8, [33, 5], slot=2, lora=LORAS[3], loss="importance_sampling"),
    batch(6, [12], slot=3, lora=LORAS[0], backward=False),
]
LONG = batch(4, [20, 9, 30, 4, 11, 40], slot=0, lora=LORAS[0])
RUINED = 1  # of PARTS
TRAINED = batch(3, [20, 30], slot=0, lora=LORAS[0])
FILLED = RunShape(lengths=(14, 3), group=0, targets=1, backward=True, whole=False, kept=(17,))
STEPS = 3

Found = dict[str, Tensor]


def found_by(lab: Lab) -> Found:
    """All that is compared, on this many ranks."""
    found: Found = {}
    for family in FAMILIES:
        engine = lab.engine(family)
        found[f"parameters/{family}"] = torch.tensor(engine.details.parameters)
        found |= _named(family, after(engine, PARTS))
    engine = lab.engine("qwen3")
    for index, part in enumerate(PARTS):
        found |= _named(f"alone/{index}", after(engine, [part]))
    found |= _named("ruined", after(engine, PARTS, ruined=PARTS[RUINED].slot))
    found |= _named("forward", after(engine, [replace(part, backward=False) for part in PARTS]))
    found |= _named("recomputed", after(lab.engine("qwen3", recompute=True), PARTS))
    found |= _named("bfloat16", after(lab.engine("qwen3", dtype="bfloat16"), PARTS))
    found |= _named("pieces", after(lab.engine("qwen3", pass_tokens=32), [LONG]))
    found |= _named("filled", beside_a_filler(engine))
    found["base"] = hidden_of_the_base_model(engine)
    return found


def after(engine: TrainEngine, parts: Sequence[PassPart], ruined: int | None = None) -> Found:
    """What became of the parts, run together on fresh adapters. ruined: a slot whose weights are NaN."""
    for part in parts:
        begin(engine, part.slot, part.lora)
    if ruined is not None:
        weights_N = engine.bank.row(ruined).weights
        weights_N.masked_fill_(weights_N != 0, torch.nan)
    found: Found = {}
    for index, outcome in enumerate(outcomes_of(engine, parts)):
        if isinstance(outcome, PartResult):
            found[f"{index}/logprobs"] = torch.from_numpy(outcome.logprobs)
            found[f"{index}/terms"] = torch.from_numpy(outcome.loss_terms)
    for slot in {part.slot for part in parts}:
        found |= _named(f"gradients/{slot}", gradients(engine, slot))
    return found


def outcomes_of(engine: TrainEngine, parts: Sequence[PassPart]) -> Sequence[object]:
    """On the first rank as ever; on others the same passes."""
    if tensor_group().shard.first:
        return engine.forward_backward(parts)
    ordered = sorted(parts, key=lambda part: engine.bank.row(part.slot).layout.number)
    for members in zip_longest(*(_members_of(engine, part) for part in ordered)):
        present = [member for member in members if member is not None]
        assert run_members(engine._compute.backbone, engine._compute.head, present) == []
    return []


def _members_of(engine: TrainEngine, part: PassPart) -> Iterator[Member]:
    """Of each piece. What its gradients' memory holds before is nobody's business."""
    row, memory = engine.bank.row(part.slot), engine.bank.memory
    rows = rows_of(part, memory.device)
    scratch = memory.take(row.layout, torch.float32)
    scratch.row_N.fill_(torch.nan)
    gathering = GradientRow(scratch) if part.backward else None
    for piece in split_rows(rows, cut(rows.lengths, engine.pass_tokens)):
        yield Member(
            rows=piece,
            scale=row.lora.alpha / row.lora.rank,
            weights=row.views,
            gradients=gathering,
        )


def beside_a_filler(engine: TrainEngine) -> Found:
    part = PARTS[0]
    begin(engine, part.slot, part.lora)
    (member,) = _members_of(engine, part)
    members = [member, filler(FILLED, member, engine.bank.memory.device)]
    results = run_members(engine._compute.backbone, engine._compute.head, members)
    assert member.gradients is not None
    return {
        "gradients": member.gradients.finish().clone(),
        **{f"{index}/logprobs": result.logprobs_t for index, result in enumerate(results)},
    }


def hidden_of_the_base_model(engine: TrainEngine) -> Tensor:
    """With megatron-core's own forward."""
    backbone, tokens_T = engine._compute.backbone, torch.tensor(LONG.tokens)
    with torch.no_grad(), backbone.running(pack(LONG.lengths.tolist(), tokens_T.device), None):
        return backbone.hidden(tokens_T)


def trained(engine: TrainEngine) -> None:
    """Some steps of the adapter in slot 0. Every rank has to know the weights."""
    for step in range(STEPS):
        outcomes_of(engine, [replace(TRAINED, tokens=TRAINED.tokens[::-1].copy()) if step else TRAINED])
        if tensor_group().shard.first:
            engine.optim_step(0, adam(eps=1e-4))
        tensor_group().tell(engine.bank.row(0).main)


def begun_here(engine: TrainEngine) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A checkpoint after some steps from the seed."""
    begin(engine, 0, TRAINED.lora)
    trained(engine)
    return engine.checkpoint_tensors(state_in(engine, 0))


def gone_on(engine: TrainEngine, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Found:
    """Weights some steps after a checkpoint."""
    state = engine.state_from_checkpoint(tensors, metadata, TRAINED.lora, with_optimizer=True)
    engine.bank.copy_in(0, state)
    trained(engine)
    return weights(engine, 0)


def _named(prefix: str, found: Found) -> Found:
    return {f"{prefix}/{name}": tensor.contiguous() for name, tensor in found.items()}


def refused_by_name(lab: Lab) -> str:
    try:
        lab.engine("smollm2")
    except InvalidConfig as error:
        return str(error)
    return "not refused"


def _run(models: Path, files: Path) -> None:
    rank = 0 if os.fork() else 1
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    store = dist.FileStore(str(files / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    tensor_group(RANKS)
    lab = Lab(models)
    found = found_by(lab)
    checkpoint, metadata = begun_here(lab.engine("qwen2"))
    found |= _named("gone on", gone_on(lab.engine("qwen2"), *read_checkpoint(files / "alone.safetensors")))
    if rank == 0:
        (files / "refused").write_text(refused_by_name(lab))
        save_file(found, files / "found.safetensors")
        save_file(checkpoint, files / "group.safetensors", metadata)
        _, status = os.wait()
        sys.exit(os.waitstatus_to_exitcode(status))


def read_checkpoint(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata())  # noqa: SIM118


if __name__ == "__main__":
    _run(Path(sys.argv[1]), Path(sys.argv[2]))
