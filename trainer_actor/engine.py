"""The trainer's compute engine: one frozen base model, a bank of adapters, and what can be done to them.

Owns every tensor of training. Which adapter lies in which slot, who runs when, and all files are
left to the trainer's loop. Every call is all or nothing: what it raises, or answers with an error,
leaves the slots as they were.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..bus.config import Config
from ..bus.errors import InvalidConfig, InvalidData, NotFinite, StartFailed
from ..bus.messages import Floats, Ints, LoraSpec, ModelDetails
from . import checks
from .backbone import Backbone
from .bank import Bank, HostState
from .checkpoint_state import read_state, state_tensors
from .hf_config import BaseModel, read_base_model
from .loss_metrics import loss_metrics
from .loss_settings import checked_settings
from .model_pass import Rows, RowsResult, rows_of, run_rows, split_rows
from .optimizer import adam_step
from .output import output_head
from .passes import AdamParams, PartOutcome, PartResult, PassPart, StepOutcome
from .peft_files import read_peft, write_peft
from .row_layout import padded_rank, row_layout
from .row_views import RowsViews
from .seeds import fresh_weights

# A pass of a few hundred positions fills a core; activations of more only take memory.
_CPU_PASS_TOKENS = 1024
_CUDA_PASS_TOKENS = 16384


class TrainEngine:
    """details: the base model as clients see it. slots: how many adapters fit on the device."""

    @classmethod
    def build(cls, config: Config) -> Self:
        """Load the base model and make room for the slots.

        Raises:
            InvalidConfig: no such model, one that this trainer does not compute, or no such device.
            StartFailed: model and slots do not fit on the device.
        """
        device = _device(config.model.device)
        dtype = _dtype(config.model.dtype, device)
        if device.type == "cpu":
            torch.set_num_threads(config.trainer.threads or max(1, (os.cpu_count() or 2) - 1))
        base = read_base_model(_model_directory(config))
        try:
            return cls(config, base, dtype, device)
        except torch.OutOfMemoryError as error:
            row_bytes = row_layout(base.shape, config.trainer.max_rank).device_row_bytes(dtype.itemsize)
            raise StartFailed(
                f"{base.path} and {config.trainer.slots} slots of {row_bytes} bytes do not fit on the device; "
                "lower trainer.slots or trainer.max_rank"
            ) from error

    def __init__(self, config: Config, base: BaseModel, dtype: torch.dtype, device: torch.device) -> None:
        self._device = device
        self._layout = row_layout(base.shape, config.trainer.max_rank)
        self._max_rank = config.trainer.max_rank
        self._backbone = Backbone(base, self._layout, dtype, device)
        self._bank = Bank(self._layout, config.trainer.slots, dtype, device)
        self._head = output_head(self._backbone.output_weight, self._layout, config.trainer.logits_chunk)
        default = _CPU_PASS_TOKENS if device.type == "cpu" else _CUDA_PASS_TOKENS
        self._pass_tokens = config.trainer.pass_tokens or default
        self._scratch = RowsViews(torch.zeros(0, self._layout.size, device=device), self._layout)
        self.slots = config.trainer.slots
        self.details = ModelDetails(
            name=config.model.name or base.path.name,
            path=str(base.path),
            family=base.family.name,
            vocab_size=base.shape.vocab,
            max_sequence_tokens=min(config.model.max_sequence_tokens, base.max_positions),
            parameters=self._backbone.parameters,
            dtype=str(dtype).removeprefix("torch."),
        )

    def state_bytes(self, lora: LoraSpec) -> int:
        """The most that the adapter's state takes in host memory (see `row_layout`)."""
        return self._layout.host_state_bytes(lora)

    @property
    def slot_bytes(self) -> int:
        """Device memory of one slot, whatever lies in it."""
        return self._layout.device_row_bytes(self._bank.weights.element_size())

    def parameters(self, lora: LoraSpec) -> int:
        """How many numbers the adapter trains."""
        return self._layout.parameters(lora)

    def check_lora(self, lora: LoraSpec) -> None:
        """Raises InvalidRequest."""
        checks.check_lora(lora, max_rank=self._max_rank)

    def check_part(self, part: PassPart) -> None:
        """Raises InvalidData for the arrays, InvalidRequest for the loss's settings."""
        checks.check_part(part, vocab=self.details.vocab_size, max_sequence=self.details.max_sequence_tokens)
        checked_settings(part.loss, part.loss_config)

    def fresh(self, slot: int, lora: LoraSpec) -> None:
        """Begin an adapter in the slot: A from its seed, B zero, so it is the base model."""
        self._bank.write_fresh(slot, lora, fresh_weights(self._layout, lora))

    # --- passes ----------------------------------------------------------------------------------

    def forward_backward(self, parts: Sequence[PassPart]) -> list[PartOutcome]:
        """Run checked parts of different slots, several in one pass where they fit; answers in order.

        A part alone gets the same bits whatever other slots hold. Fused parts share the base model's
        products, whose last bits may depend on their size.
        """
        assert len({part.slot for part in parts}) == len(parts), "one part per slot"
        assert all(self._bank.record(part.slot).lora == part.lora for part in parts)
        total = sum(len(part.tokens) for part in parts)
        if len(parts) > 1 and total > self._pass_tokens:
            return [outcome for part in parts for outcome in self.forward_backward([part])]
        try:
            return self._run(parts)
        except torch.OutOfMemoryError:
            pass  # what the pass held is free only once the exception is gone
        torch.cuda.empty_cache()
        if len(parts) > 1:
            return [outcome for part in parts for outcome in self.forward_backward([part])]
        return [
            InvalidData(
                f"{total} positions do not fit on the device; send fewer, or lower trainer.pass_tokens"
            )
        ]

    def _run(self, parts: Sequence[PassPart]) -> list[PartOutcome]:
        order = sorted(range(len(parts)), key=lambda index: parts[index].slot)
        scratch = self._cleared_scratch([parts[index] for index in order])
        rows = [
            rows_of(parts[index], self._device, scratch.at(row, padded_rank(parts[index].lora.rank)))
            for row, index in enumerate(order)
        ]
        outcomes: dict[int, PartOutcome] = {}
        for row, (index, results) in enumerate(zip(order, self._pieces(rows), strict=True)):
            outcomes[index] = self._outcome(rows[row], results, scratch.rows[row])
        return [outcomes[index] for index in range(len(parts))]

    def _pieces(self, rows: Sequence[Rows]) -> list[list[RowsResult]]:
        """Several parts run as one pass; one part as many as its size asks for."""
        if len(rows) > 1:
            return [[result] for result in run_rows(self._backbone, self._bank, self._head, rows)]
        results = []
        for piece in split_rows(rows[0], self._pass_tokens):
            results += run_rows(self._backbone, self._bank, self._head, [piece])
            if not results[-1].finite:
                break
        return [results]

    def _outcome(self, rows: Rows, results: list[RowsResult], gradients: Tensor) -> PartOutcome:
        """Let a part's gradients join its slot's, all or none of them."""
        part = rows.part
        if not all(result.finite for result in results):
            return NotFinite("the loss is NaN or infinite; the adapter is as it was before")
        if part.backward and not self._finite(gradients, part):
            return NotFinite("a gradient is NaN or infinite; the adapter is as it was before")
        logprobs_T = torch.cat([result.logprobs_T for result in results])
        terms_T = torch.cat([result.terms_T for result in results])
        metrics = loss_metrics(part.loss, logprobs_T, terms_T, rows.inputs, rows.settings)
        if not all(math.isfinite(value) for value in metrics.values()):
            return NotFinite("the summed loss is NaN or infinite; the adapter is as it was before")
        if part.backward:
            self._join(gradients, part)
        return PartResult(
            logprobs=logprobs_T.cpu().numpy(), loss_terms=terms_T.cpu().numpy(), metrics=metrics
        )

    def _finite(self, gradients: Tensor, part: PassPart) -> bool:
        # A sum is NaN or infinite if any of its terms is, and reads everything once.
        ranges = self._layout.ranges(part.lora)
        return all(bool(torch.isfinite(gradients[start:stop].sum())) for start, stop in ranges)

    def _join(self, gradients: Tensor, part: PassPart) -> None:
        for start, stop in self._layout.ranges(part.lora):
            self._bank.gradients[part.slot, start:stop].add_(gradients[start:stop])
        record = self._bank.record(part.slot)
        record.has_gradient = True
        record.tokens += len(part.tokens)

    def _cleared_scratch(self, parts: Sequence[PassPart]) -> RowsViews:
        """A row of zeros per part, where the part will write."""
        if len(self._scratch.rows) < len(parts):
            rows = torch.zeros(len(parts), self._layout.size, device=self._device)
            self._scratch = RowsViews(rows, self._layout)
        for row, part in enumerate(parts):
            for start, stop in self._layout.ranges(part.lora) if part.backward else ():
                self._scratch.rows[row, start:stop].zero_()
        return self._scratch

    def optim_step(self, slot: int, params: AdamParams) -> StepOutcome:
        """Raises InvalidRequest, NotFinite: nothing changed."""
        return adam_step(self._bank, slot, params)

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
            lora=self._bank.record(slot).lora,
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
        rows = rows_of(part, self._device, None)
        (result,) = run_rows(self._backbone, self._bank, self._head, [rows])
        logprobs: Floats = result.logprobs_T.cpu().numpy()
        return logprobs

    # --- states ----------------------------------------------------------------------------------

    def copy_out(self, slot: int) -> HostState:
        """A copy of the slot's whole state in host memory."""
        return self._bank.copy_out(slot)

    def copy_in(self, slot: int, state: HostState) -> None:
        """Put a state into a slot, whatever lay there before."""
        self._bank.copy_in(slot, state)

    def clear(self, slot: int) -> None:
        """Free a slot; clearing a free one is fine."""
        self._bank.clear(slot)

    def checkpoint_tensors(self, state: HostState) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Everything of a state as named tensors without padding, and metadata as text."""
        return state_tensors(self._layout, state, self.details.name)

    def state_from_checkpoint(
        self, tensors: dict[str, Tensor], metadata: dict[str, str], lora: LoraSpec, *, with_optimizer: bool
    ) -> HostState:
        """Raises CheckpointMismatch, with what differs in words."""
        return read_state(
            self._layout, tensors, metadata, lora, self.details.name, with_optimizer=with_optimizer
        )

    def peft_files(self, slot: int) -> tuple[str, bytes, int]:
        """adapter_config.json, adapter_model.safetensors and the number of adapted modules."""
        weights_N = torch.cat([part.weights for part in self._bank.active(slot)]).cpu()
        return write_peft(self._layout, self._bank.record(slot).lora, weights_N, self.details.name)

    def state_from_peft(self, config_json: str, safetensors: bytes, lora: LoraSpec) -> HostState:
        """Raises CheckpointMismatch, with what differs in words."""
        return read_peft(self._layout, lora, config_json, safetensors)


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
