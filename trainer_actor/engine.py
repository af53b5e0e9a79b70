"""The trainer's compute engine: one frozen base model, a bank of adapters, and what can be done to them.

Owns every tensor of training. Which adapter lies in which slot, who runs when, and all files are
left to the trainer's loop. Every call is all or nothing: what it raises, or answers with an error,
leaves the slots as they were.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..bus.config import Config
from ..bus.errors import InvalidData, LoractlError, OutOfSlots, StartFailed
from ..bus.messages import Floats, Ints, LoraSpec, ModelDetails
from . import checks
from .bank import Bank, HostState, Piece
from .base_identity import weights_fingerprint
from .checkpoint_state import Counts, read_state, state_metadata, state_tensors
from .compute import Compute, OneProcess
from .costs import Costs
from .device_choice import adapter_dtype_of, device_of, dtype_of, model_directory, pass_tokens_of
from .hf_config import BaseModel, read_base_model
from .hf_weights import weight_files
from .loss_settings import checked_settings
from .measuring import measure
from .naming import to_named
from .optimizer import adam_step
from .part_run import PartRun
from .pass_runner import PassRunner, fitting
from .passes import AdamParams, PartOutcome, PartResult, PassPart, StepOutcome
from .peft_files import read_peft, write_peft
from .ranks.group import Group
from .ranks.ranked_compute import RankedCompute
from .ranks.sizes import check_sizes
from .row_layout import RowLayouts
from .row_memory import fits
from .seeds import fresh_weights
from .tensor_group import tensor_group
from .torch_setup import set_up_torch


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
        device = device_of(config)
        dtype = dtype_of(config, device)
        set_up_torch(config.trainer, device)
        base = read_base_model(model_directory(config))
        check_sizes(config.trainer, base, device)
        # The others load the model at the same time.
        group = Group.start(config, device) if config.trainer.ranks > 1 else None
        try:
            return cls(config, base, dtype, device, group)
        except BaseException as error:
            if group is not None:
                group.close()
            if isinstance(error, torch.OutOfMemoryError):
                raise StartFailed(f"{base.path} does not fit on the device") from error
            raise

    def __init__(
        self,
        config: Config,
        base: BaseModel,
        dtype: torch.dtype,
        device: torch.device,
        group: Group | None = None,
    ) -> None:
        settings = config.trainer
        self._layouts = RowLayouts(base.shape, tensor_group(settings.tensor_parallel).shard)
        self._max_rank = settings.max_rank
        self._dtype = dtype
        self._bank = Bank(self._layouts, settings.slots, adapter_dtype_of(device, dtype), device)
        own = OneProcess.load(settings, base, self._layouts, dtype, device)
        self._group = group
        self._compute: Compute = own
        if group is not None:
            group.wait_until_ready()
            self._compute = RankedCompute(own, group, self._bank.memory, settings.tensor_parallel)
        self._passes = PassRunner(self._compute, self._bank.memory)
        parameters = own.backbone.parameters
        self.pass_tokens = pass_tokens_of(config, device, parameters)
        self.slots = settings.slots
        self.details = ModelDetails(
            name=config.model.name or base.path.name,
            path=str(base.path),
            family=base.family.name,
            vocab_size=base.shape.vocab,
            max_sequence_tokens=min(config.model.max_sequence_tokens, base.max_positions),
            parameters=parameters,
            dtype=str(dtype).removeprefix("torch."),
            weights=weights_fingerprint(weight_files(base.path)),
        )

    def tell_progress(self, alive: Callable[[], None]) -> None:
        """alive: called again and again within a pass, some times a layer."""
        self._compute.tell_progress(alive)

    def close(self) -> None:
        """End the other ranks, if there are any. Nothing is computed from here on."""
        if self._group is not None:
            self._group.close()

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

    @property
    def bank(self) -> Bank:
        """The rows, for whoever moves states."""
        return self._bank

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
        change its weights; the slot keeps its adapter.

        Raises OutOfSlots: the device has no room for its arrays.
        """
        row = self._bank.row(part.slot)
        assert row.lora == part.lora
        begun: list[PartRun] = []
        if fits(
            self._bank.memory,
            lambda: begun.append(PartRun(part, row, self._bank.memory, self.pass_tokens)),
        ):
            return begun[0]
        raise OutOfSlots(
            f"the device has no room for the {len(part.tokens)} positions of this operation; send fewer, or "
            "lower trainer.slots"
        )

    def run(self, runs: Sequence[PartRun]) -> None:
        """One pass over the base model: the next piece of each. Several may be of one slot.

        In float32 on a CPU each gets the same bits as alone; elsewhere, shared products differ in
        their last bits. Gradients join an adapter's in the order in which its runs end: for the same
        bits, a run of a slot begins only when those begun before it end in this pass at the latest.
        Where memory runs out, they run one by one, from their first pieces: `left` may grow.
        """
        self._passes.run(runs)

    def abandon(self, run: PartRun) -> None:
        """Give up a run that has no outcome: its slot is as it was before."""
        run.abandon()

    def forward_backward(self, parts: Sequence[PassPart]) -> list[PartOutcome]:
        """Run checked parts to their ends, several in a pass where they fit; answers in order."""
        runs = [self.begin(part) for part in parts]
        while waiting := [run for run in runs if run.outcome is None]:
            self.run(fitting(waiting, self.pass_tokens))
        outcomes = [run.outcome for run in runs]
        return [outcome for outcome in outcomes if outcome is not None]

    def optim_steps(self, steps: Sequence[tuple[int, AdamParams]]) -> list[StepOutcome | LoractlError]:
        """One step of each of several slots; what fails is answered with its error and changed nothing."""
        return [self._step(slot, params) for slot, params in steps]

    def optim_step(self, slot: int, params: AdamParams) -> StepOutcome:
        """Raises InvalidRequest, NotFinite, OutOfSlots: nothing changed."""
        outcome = self._step(slot, params)
        if isinstance(outcome, LoractlError):
            raise outcome
        return outcome

    def _step(self, slot: int, params: AdamParams) -> StepOutcome | LoractlError:
        outcomes: list[StepOutcome] = []
        try:
            if fits(self._bank.memory, lambda: outcomes.append(adam_step(self._bank.row(slot), params))):
                return outcomes[0]
        except LoractlError as error:
            return error
        return OutOfSlots("the device has no room for the optimizer's moments; lower trainer.slots")

    def measure(self) -> Costs:
        """What passes and copies cost here, measured now (see `measuring`). Changes nothing."""
        return measure(self._passes, self._bank, max_sequence_tokens=self.details.max_sequence_tokens)

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

    def checkpoint_tensors(self, state: HostState) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Everything of a state as named tensors without padding, and metadata as text."""
        return state_tensors(self._layouts.of(state.lora), state, self.details.name)

    def snapshot_tensors(
        self, counts: Counts, changed: Mapping[Piece, Tensor], present: Collection[Piece]
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
        """The pieces that changed as named tensors, and what those that are `present` belong to."""
        layout = self._layouts.of(counts.lora)
        named: dict[str, dict[str, Tensor]] = {
            piece: to_named(layout, counts.lora.rank, piece_N) for piece, piece_N in changed.items()
        }
        return named, state_metadata(layout, counts, present, self.details.name)

    def state_from_checkpoint(
        self, tensors: dict[str, Tensor], metadata: dict[str, str], lora: LoraSpec, *, with_optimizer: bool
    ) -> HostState:
        """Raises CheckpointMismatch, with what differs in words."""
        layout = self._layouts.of(lora)
        return read_state(layout, tensors, metadata, lora, self.details.name, with_optimizer=with_optimizer)

    def peft_files(self, slot: int) -> tuple[str, bytes, int]:
        """adapter_config.json, adapter_model.safetensors and the number of adapted modules."""
        row = self._bank.row(slot)
        return write_peft(row.layout, row.lora, row.weights.to("cpu", self._dtype), self.details.name)

    def state_from_peft(self, config_json: str, safetensors: bytes, lora: LoraSpec) -> HostState:
        """Raises CheckpointMismatch, with what differs in words."""
        return read_peft(self._layouts.of(lora), lora, config_json, safetensors)
