"""A training state as checkpoint tensors and metadata, and back. Writes no files.

Tensors are `<piece>/<PEFT name>` for the pieces main, gradients, exp_avg and exp_avg_sq, float32 and
without padding. Metadata says what the
numbers belong to; all of it must fit before a tensor is used.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import Protocol

from torch import Tensor

from ..bus.errors import CheckpointMismatch
from ..bus.messages import LoraSpec
from .bank import HostState
from .base_identity import base_difference
from .naming import from_named, listed, to_named
from .row_layout import RowLayout

_FORMAT = "loractl-state-1"


class Counts(Protocol):
    """Of a state, whatever of its pieces is at hand."""

    @property
    def lora(self) -> LoraSpec: ...
    @property
    def step(self) -> int: ...
    @property
    def tokens(self) -> int: ...


def state_tensors(
    layout: RowLayout, state: HostState, base_model: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    pieces = state.pieces
    tensors = {
        f"{piece}/{name}": tensor
        for piece, piece_N in pieces.items()
        for name, tensor in to_named(layout, state.lora.rank, piece_N).items()
    }
    return tensors, state_metadata(layout, state, pieces, base_model)


def state_metadata(
    layout: RowLayout, counts: Counts, pieces: Collection[str], base_model: str
) -> dict[str, str]:
    """What the numbers of these pieces belong to."""
    return {
        **_belongs_to(layout, counts.lora, base_model),
        "step": str(counts.step),
        "tokens": str(counts.tokens),
        "pieces": json.dumps(sorted(pieces)),
    }


def piece_digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of each piece that is there, in hex. tensors: as of `state_tensors`, on the CPU."""
    digests: dict[str, hashlib._Hash] = {}
    for key in sorted(tensors):
        digest = digests.setdefault(key.partition("/")[0], hashlib.sha256())
        digest.update(tensors[key].contiguous().numpy().data)
    return {piece: digest.hexdigest() for piece, digest in digests.items()}


def check_geometry(what: str, saved: tuple[LoraSpec, str], ours: tuple[LoraSpec, str]) -> None:
    """Refuse what was saved of another geometry or base, with every difference. The seed may differ.

    Raises:
        CheckpointMismatch
    """
    (their_lora, their_base), (lora, base) = saved, ours
    pairs = {
        "rank": (their_lora.rank, lora.rank),
        "alpha": (their_lora.alpha, lora.alpha),
        "train_attn": (their_lora.train_attn, lora.train_attn),
        "train_mlp": (their_lora.train_mlp, lora.train_mlp),
        "train_unembed": (their_lora.train_unembed, lora.train_unembed),
    }
    different = [f"{each} {theirs} is not {own}" for each, (theirs, own) in pairs.items() if theirs != own]
    if other_base := base_difference(their_base, base):
        different.insert(0, other_base)
    if different:
        raise CheckpointMismatch(
            f"{what} does not fit this adapter: {', '.join(different)}; create an adapter like the one that was saved"
        )


def read_state(
    layout: RowLayout,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    lora: LoraSpec,
    base_model: str,
    *,
    with_optimizer: bool,
) -> HostState:
    """The state of an adapter `lora`, whose seed may be another's: it only drew the first weights.

    Without the optimizer, what is left are the weights, at step 0.

    Raises:
        CheckpointMismatch: the message lists what differs.
    """
    _check_belongs(_belongs_to(layout, lora, base_model), metadata)
    step, tokens, pieces = _counters(metadata)
    by_piece: dict[str, dict[str, Tensor]] = {piece: {} for piece in pieces}
    for key, tensor in tensors.items():
        piece, _, name = key.partition("/")
        if piece not in by_piece:
            raise CheckpointMismatch(
                f"the checkpoint holds a tensor {key!r} that its metadata does not announce"
            )
        by_piece[piece][name] = tensor
    read = {
        piece: from_named(layout, lora.rank, named, what=f"the checkpoint's {piece}")
        for piece, named in by_piece.items()
    }
    state = HostState(
        lora=lora,
        step=step,
        tokens=tokens,
        main=read["main"],
        gradients=read.get("gradients"),
        exp_avg=read.get("exp_avg"),
        exp_avg_sq=read.get("exp_avg_sq"),
    )
    if with_optimizer:
        return state
    return replace(state, step=0, tokens=0, gradients=None, exp_avg=None, exp_avg_sq=None)


def _belongs_to(layout: RowLayout, lora: LoraSpec, base_model: str) -> dict[str, str]:
    """What must be equal between a checkpoint and the adapter that loads it."""
    return {
        "format": _FORMAT,
        "base_model": base_model,
        "base_shape": json.dumps(asdict(layout.shape), sort_keys=True),
        "lora": json.dumps(asdict(replace(lora, seed=0, alpha=float(lora.alpha))), sort_keys=True),
    }


def _check_belongs(wanted: Mapping[str, str], metadata: Mapping[str, str]) -> None:
    differences = [
        f"{key} is {metadata.get(key, 'absent')} and should be {value}"
        for key, value in wanted.items()
        if metadata.get(key) != value
    ]
    if differences:
        raise CheckpointMismatch(f"the checkpoint belongs to something else: {listed(differences)}")


def _counters(metadata: Mapping[str, str]) -> tuple[int, int, list[str]]:
    """step, tokens and the pieces, which must make a whole state."""
    try:
        step, tokens = int(metadata["step"]), int(metadata["tokens"])
        pieces = json.loads(metadata["pieces"])
    except (KeyError, ValueError) as error:
        raise CheckpointMismatch(f"the checkpoint's metadata cannot be read: {error!r}") from error
    moments = ["exp_avg", "exp_avg_sq"] if step > 0 else []
    possible = [sorted(["main", *moments]), sorted(["main", "gradients", *moments])]
    if step < 0 or tokens < 0 or pieces not in possible:
        raise CheckpointMismatch(f"the checkpoint holds {pieces} at step {step}, which is no whole state")
    return step, tokens, pieces
