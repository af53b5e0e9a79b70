"""The trainer's compute engine: one frozen base model, a bank of adapters, and what can be done to them.

Owns every tensor of training. Which adapter lies in which slot, who runs when, and all files are
left to the trainer's loop. Every call is all or nothing: what it raises, or answers with an error,
leaves the slots as they were.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..bus.config import Config
from ..bus.errors import InvalidConfig, InvalidData, LoractlError, StartFailed
from ..bus.messages import Floats, Ints, LoraSpec, ModelDetails
from . import checks
from .backbone import Backbone
from .bank import Bank, HostState, Row
from .checkpoint_state import read_state, state_tensors
from .hf_config import BaseModel, read_base_model
from .loss_settings import checked_settings
from .model_pass import run_members
from .optimizer import adam_step
from .output import OutputHead
from .part_run import PartRun
from .passes import AdamParams, PartOutcome, PartResult, PassPart, StepOutcome
from .peft_files import read_peft, write_peft
from .row_floor import floor_of
from .row_layout import RowLayouts
from .seeds import fresh_weights

# A pass of a few hundred positions fills a core; activations of more only take memory, and a pass of a
# larger model over more would have others wait for seconds.
_SMALL_MODEL_PARAMETERS = 50_000_000
_CPU_PASS_TOKENS, _CPU_PASS_TOKENS_OF_LARGER = 1024, 256
_CUDA_PASS_TOKENS = 16384


class TrainEngine:
    """details: the base model as clients see it. slots: how many adapters may lie on the device.

    pass_tokens: positions that run through the model at one time; a longer datum runs alone.
    """

    @classmethod
    def build(cls, config: Config) -> Self:
        """Load the base model.

        Raises:
            InvalidConfig: no such model, one that this trainer does not compute, or no such device.
            StartFailed: the model does not fit on the device.
        """
        device = _device(config.model.device)
        dtype = _dtype(config.model.dtype, device)
        if device.type == "cpu":
            torch.set_num_threads(config.trainer.threads or max(1, (os.cpu_count() or 2) - 1))
        base = read_base_model(_model_directory(config))
        try:
            return cls(config, base, dtype, device)
        except torch.OutOfMemoryError as error:
            raise StartFailed(f"{base.path} does not fit on the device") from error

    def __init__(self, config: Config, base: BaseModel, dtype: torch.dtype, device: torch.device) -> None:
        settings = config.trainer
        self._device = device
        self._layouts = RowLayouts(base.shape)
        self._max_rank = settings.max_rank
        linears = self._layouts.linears
        self._backbone = Backbone(base, linears, dtype, device, recompute=settings.recompute)
        self._bank = Bank(self._layouts, settings.slots, dtype, device)
        floor = floor_of(device)
        unembed = next(linear for linear in linears if linear.kind == "unembed")
        chunk = max(settings.logits_chunk, floor)
        self._head = OutputHead(self._backbone.output_weight, unembed, chunk, floor)
        self.pass_tokens = settings.pass_tokens or _pass_tokens(device, self._backbone.parameters)
        self.slots = settings.slots
        self.details = ModelDetails(
            name=config.model.name or base.path.name,
            path=str(base.path),
            family=base.family.name,
            vocab_size=base.shape.vocab,
            max_sequence_tokens=min(config.model.max_sequence_tokens, base.max_positions),
            parameters=self._backbone.parameters,
            dtype=str(dtype).removeprefix("torch."),
        )

    def row_bytes(self, lora: LoraSpec) -> int:
        """The most that the adapter takes on the device while one forward_backward of it runs."""
        return self._layouts.of(lora).device_row_bytes(self._bank.dtype.itemsize)

    def state_bytes(self, lora: LoraSpec) -> int:
        """The most that the adapter's state takes in host memory (see `row_layout`)."""
        return self._layouts.of(lora).host_state_bytes()

    def parameters(self, lora: LoraSpec) -> int:
        """How many numbers the adapter trains."""
        return self._layouts.of(lora).parameters(lora.rank)

    def check_lora(self, lora: LoraSpec) -> None:
        """Raises InvalidRequest."""
        checks.check_lora(lora, max_rank=self._max_rank)

    def check_part(self, part: PassPart) -> None:
        """Raises InvalidData for the arrays, InvalidRequest for the loss's settings."""
        checks.check_part(part, vocab=self.details.vocab_size, max_sequence=self.details.max_sequence_tokens)
        checked_settings(part.loss, part.loss_config)

    def row(self, slot: int) -> Row:
        """The row of the adapter in this slot, for whoever moves states."""
        return self._bank.row(slot)

    def open(self, slot: int, lora: LoraSpec) -> Row:
        """A row in a free slot. Its main weights are the caller's to fill, and to round (`Row`).

        Raises torch.OutOfMemoryError.
        """
        return self._bank.open(slot, lora)

    def fresh(self, slot: int, lora: LoraSpec) -> None:
        """Begin an adapter in the slot: A from its seed, B zero, so it is the base model."""
        main_N = fresh_weights(self._layouts.of(lora), lora)
        state = HostState(
            lora=lora, step=0, tokens=0, main=main_N, gradients=None, exp_avg=None, exp_avg_sq=None
        )
        self._bank.copy_in(slot, state).changed.add("main")

    # --- passes ----------------------------------------------------------------------------------

    def begin(self, part: PassPart) -> PartRun:
        """Take up a checked part. Until its outcome, nothing of its slot changes, and nothing else may
        change its weights; the slot keeps its adapter."""
        row = self._bank.row(part.slot)
        assert row.lora == part.lora
        return PartRun(part, row, self._bank.memory, self.pass_tokens)

    def run(self, runs: Sequence[PartRun]) -> None:
        """One pass over the base model: the next piece of each. Several may be of one slot.

        In float32 on a CPU each gets the same bits as alone; elsewhere, shared products differ in
        their last bits. Gradients join an adapter's in the order in which its runs end: for the same
        bits, a run of a slot begins only when those begun before it end in this pass at the latest.
        Where memory runs out, they run one by one, from their first pieces: `left` may grow.
        """
        assert all(run.left for run in runs), "each has a piece left"
        self._attempt([run for run in runs if not run.alone])
        for run in runs:
            if run.alone and run.left:
                self._attempt([run])

    def abandon(self, run: PartRun) -> None:
        """Give up a run that has no outcome: its slot is as it was before."""
        run.abandon()

    def forward_backward(self, parts: Sequence[PassPart]) -> list[PartOutcome]:
        """Run checked parts to their ends, several in a pass where they fit; answers in order."""
        runs = [self.begin(part) for part in parts]
        while waiting := [run for run in runs if run.outcome is None]:
            self.run(_fitting(waiting, self.pass_tokens))
        outcomes = [run.outcome for run in runs]
        return [outcome for outcome in outcomes if outcome is not None]

    def _attempt(self, runs: Sequence[PartRun]) -> None:
        if not runs:
            return
        try:
            self._pass(runs)
            return
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
        # What the pass held is free only once the exception is gone.
        self._bank.memory.release()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(runs) > 1:
            for run in runs:
                run.restart()
            return
        tokens = max(runs[0].pieces)
        runs[0].fail(
            InvalidData(
                f"{tokens} positions do not fit on the device; send fewer, or lower trainer.pass_tokens"
            )
        )

    def _pass(self, runs: Sequence[PartRun]) -> None:
        ordered = sorted(runs, key=_layout_number)
        results = run_members(self._backbone, self._head, [run.member() for run in ordered])
        by_run = dict(zip(map(id, ordered), results, strict=True))
        for run in runs:
            run.ran(by_run[id(run)])

    def optim_steps(self, steps: Sequence[tuple[int, AdamParams]]) -> list[StepOutcome | LoractlError]:
        """One step of each of several slots; what fails is answered with its error and changed nothing."""
        outcomes: list[StepOutcome | LoractlError] = []
        for slot, params in steps:
            try:
                outcomes.append(self.optim_step(slot, params))
            except LoractlError as error:
                outcomes.append(error)
        return outcomes

    def optim_step(self, slot: int, params: AdamParams) -> StepOutcome:
        """Raises InvalidRequest, NotFinite: nothing changed."""
        return adam_step(self._bank.row(slot), params)

    def score(self, slot: int, tokens: Sequence[int] | Ints) -> Floats:
        """log p(t_i | t_<i) for i >= 1, one fewer than the tokens.

        Raises:
            InvalidData: fewer than two tokens, too many, or one outside of the vocabulary.
        """
        ids = np.asarray(tokens, dtype=np.int64)
        count = len(ids) - 1
        if not 1 <= count <= self.details.max_sequence_tokens:
            raise InvalidData(
                f"{len(ids)} tokens cannot be scored; 2 to {self.details.max_sequence_tokens + 1} can"
            )
        checks.check_tokens(ids, self.details.vocab_size, what="tokens")
        empty = np.zeros(0, dtype=np.float32)
        part = PassPart(
            slot=slot,
            lora=self._bank.row(slot).lora,
            lengths=np.array([count]),
            tokens=ids[:-1],
            targets=ids[1:],
            weights=np.zeros(count, dtype=np.float32),
            old_logprobs=empty,
            advantages=empty,
            loss="cross_entropy",
            loss_config={},
            backward=False,
        )
        (outcome,) = self.forward_backward([part])
        if not isinstance(outcome, PartResult):
            raise outcome
        return outcome.logprobs

    # --- states ----------------------------------------------------------------------------------

    def copy_out(self, slot: int) -> HostState:
        """A copy of the slot's whole state in host memory."""
        return self._bank.copy_out(slot)

    def copy_in(self, slot: int, state: HostState) -> None:
        """Put a state into a slot, whatever lay there before."""
        self._bank.copy_in(slot, state)

    def clear(self, slot: int) -> None:
        """Free a slot; clearing a free one is fine."""
        self._bank.close(slot)

    def checkpoint_tensors(self, state: HostState) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Everything of a state as named tensors without padding, and metadata as text."""
        return state_tensors(self._layouts.of(state.lora), state, self.details.name)

    def state_from_checkpoint(
        self, tensors: dict[str, Tensor], metadata: dict[str, str], lora: LoraSpec, *, with_optimizer: bool
    ) -> HostState:
        """Raises CheckpointMismatch, with what differs in words."""
        layout = self._layouts.of(lora)
        return read_state(layout, tensors, metadata, lora, self.details.name, with_optimizer=with_optimizer)

    def peft_files(self, slot: int) -> tuple[str, bytes, int]:
        """adapter_config.json, adapter_model.safetensors and the number of adapted modules."""
        row = self._bank.row(slot)
        return write_peft(row.layout, row.lora, row.weights.cpu(), self.details.name)

    def state_from_peft(self, config_json: str, safetensors: bytes, lora: LoraSpec) -> HostState:
        """Raises CheckpointMismatch, with what differs in words."""
        return read_peft(self._layouts.of(lora), lora, config_json, safetensors)


def _fitting(runs: Sequence[PartRun], tokens: int) -> list[PartRun]:
    """The first, and what follows while its next pieces fit beside it."""
    chosen: list[PartRun] = []
    for run in runs:
        piece = run.pieces[-run.left]
        if chosen and piece > tokens:
            break
        chosen.append(run)
        tokens -= piece
    return chosen


def _layout_number(run: PartRun) -> int:
    return run.layout_number


def _out_of_memory(error: RuntimeError) -> bool:
    # torch has a class for the device's memory only; on a CPU the message is all there is.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _pass_tokens(device: torch.device, parameters: int) -> int:
    if device.type == "cuda":
        return _CUDA_PASS_TOKENS
    return _CPU_PASS_TOKENS if parameters < _SMALL_MODEL_PARAMETERS else _CPU_PASS_TOKENS_OF_LARGER


def _model_directory(config: Config) -> Path:
    given = config.model.path or config.model.name
    if not given or not Path(given).is_dir():
        raise InvalidConfig(f"{given!r} is no directory: set model.path to a Hugging Face model directory")
    return Path(given).absolute()


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig("model.device is cuda, but torch finds no CUDA device here")
    return torch.device(wanted)


def _dtype(wanted: str, device: torch.device) -> torch.dtype:
    if wanted == "auto":
        wanted = "bfloat16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]
