"""The ways in which `bench/train.py` lets tenants train: ours, PEFT's, and the models they share."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from loractl.bus.config import Config, ModelConfig, TrainerConfig, set_process_environment
from loractl.trainer_actor.absent_libraries import silence_absent_libraries

# Before torch is imported, and so that megatron-core imports no compiler.
set_process_environment({"TORCHDYNAMO_DISABLE": "1"})
silence_absent_libraries()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from loractl.bus.messages import LoraSpec  # noqa: E402
from loractl.trainer_actor.engine import TrainEngine  # noqa: E402
from loractl.trainer_actor.passes import AdamParams, PartResult, PassPart, StepOutcome  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging  # noqa: E402

logging.disable_progress_bar()

RANK = 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ADAM = AdamParams(learning_rate=1e-4, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0, grad_clip_norm=0.0)


@dataclass(frozen=True, slots=True)
class Datums:
    """What one tenant trains on in a round: [sequences, length] each."""

    tokens: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of one round, and the summed loss of all tenants."""

    passes_s: float
    steps_s: float
    loss: float

    @property
    def total_s(self) -> float:
        return self.passes_s + self.steps_s


class Way(Protocol):
    def run(self, data: Sequence[Datums]) -> Round: ...


# --- models ------------------------------------------------------------------------------------------


def llama(**fields: int) -> Callable[[], PreTrainedModel]:
    return lambda: LlamaForCausalLM(LlamaConfig(**fields, tie_word_embeddings=True))


def qwen3(*, tied: bool, **fields: int) -> Callable[[], PreTrainedModel]:
    return lambda: Qwen3ForCausalLM(Qwen3Config(**fields, head_dim=128, tie_word_embeddings=tied))


def dimensions(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocab: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
    }


SHAPES: dict[str, Callable[[], PreTrainedModel]] = {
    "tiny": llama(**dimensions(2, 64, 192, 4, 2, 512)),
    "smollm2-135m": llama(**dimensions(30, 576, 1536, 9, 3, 49152)),
    "qwen3-0.6b": qwen3(tied=True, **dimensions(28, 1024, 3072, 16, 8, 151936)),
    "qwen3-8b": qwen3(tied=False, **dimensions(36, 4096, 12288, 32, 8, 151936)),
}


def make_model(shape: str, dtype: torch.dtype, device: str, directory: Path) -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = SHAPES[shape]()
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(directory)


# --- ways --------------------------------------------------------------------------------------------


class Watch:
    def __init__(self, device: str, threads: int) -> None:
        self._device = device
        # One thread's CPU time does not count what others on the machine took.
        self._now = time.process_time if device == "cpu" and threads == 1 else time.perf_counter
        self._last = self._now()

    def lap(self) -> float:
        """Seconds since the last look."""
        if self._device == "cuda":
            torch.cuda.synchronize()
        last, self._last = self._last, self._now()
        return self._last - last


def lora_of(seed: int) -> LoraSpec:
    return LoraSpec(rank=RANK, alpha=2 * RANK, seed=seed)


def part_of(slot: int, data: Sequence[Datums]) -> PassPart:
    """One tenant's operation on these datums."""
    tokens = np.concatenate([each.tokens for each in data])
    targets = np.concatenate([each.targets for each in data])
    nothing = np.zeros(0, dtype=np.float32)
    return PassPart(
        slot=slot,
        lora=lora_of(slot),
        lengths=np.full(len(tokens), tokens.shape[1]),
        tokens=tokens.reshape(-1),
        targets=targets.reshape(-1),
        weights=np.ones(tokens.size, dtype=np.float32),
        old_logprobs=nothing,
        advantages=nothing,
        loss="cross_entropy",
        loss_config={},
        backward=True,
    )


def build_engine(path: Path, dtype: str, device: str, threads: int, tenants: int) -> TrainEngine:
    config = Config(
        model=ModelConfig(path=str(path), dtype=dtype, device=device),  # type: ignore[arg-type]
        trainer=TrainerConfig(slots=tenants, max_rank=RANK, threads=threads),
    )
    engine = TrainEngine.build(config)
    for slot in range(tenants):
        engine.fresh(slot, lora_of(slot))
    return engine


class Ours:
    """calls: how the tenants' data becomes calls of the engine, of one part each or of several."""

    def __init__(
        self, engine: TrainEngine, watch: Watch, calls: Callable[[Sequence[Datums]], list[list[PassPart]]]
    ) -> None:
        self._engine, self._watch, self._calls = engine, watch, calls

    def run(self, data: Sequence[Datums]) -> Round:
        calls = self._calls(data)
        passes_s = steps_s = loss = 0.0
        self._watch.lap()
        for parts in calls:
            for outcome in self._engine.forward_backward(parts):
                assert isinstance(outcome, PartResult), outcome
                loss += outcome.metrics["loss:sum"]
            passes_s += self._watch.lap()
            for outcome in self._engine.optim_steps([(part.slot, ADAM) for part in parts]):
                assert isinstance(outcome, StepOutcome), outcome
            steps_s += self._watch.lap()
        return Round(passes_s, steps_s, loss)


class Peft:
    """The founding systems' way: the model is switched from adapter to adapter."""

    def __init__(self, model: PeftModel, watch: Watch, device: str) -> None:
        self._model, self._watch, self._device = model, watch, device
        self._optimizers: dict[str, torch.optim.AdamW] = {}
        for name in model.peft_config:
            model.set_adapter(name)
            mine = [each for each in model.parameters() if each.requires_grad]
            self._optimizers[name] = torch.optim.AdamW(
                mine,
                lr=ADAM.learning_rate,
                betas=(ADAM.beta1, ADAM.beta2),
                eps=ADAM.eps,
                weight_decay=ADAM.weight_decay,
            )

    def run(self, data: Sequence[Datums]) -> Round:
        passes_s = steps_s = loss = 0.0
        self._watch.lap()
        for name, mine in zip(self._optimizers, data, strict=False):
            loss += self._forward_backward(name, mine)
            passes_s += self._watch.lap()
            self._optimizers[name].step()
            self._optimizers[name].zero_grad()
            steps_s += self._watch.lap()
        return Round(passes_s, steps_s, loss)

    def _forward_backward(self, name: str, mine: Datums) -> float:
        self._model.set_adapter(name)
        tokens = torch.from_numpy(mine.tokens).to(self._device)
        targets = torch.from_numpy(mine.targets).to(self._device)
        logits = self._model(input_ids=tokens, use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
        loss.backward()
        return float(loss.detach())


def load_peft(
    engine: TrainEngine, model_path: Path, directory: Path, dtype: torch.dtype, device: str
) -> PeftModel:
    """The engine's adapters, in PEFT, with its defaults: adapters in float32 even on a bfloat16 base."""
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype).to(device)
    model: PeftModel | None = None
    for slot in range(engine.slots):
        adapter = directory / f"adapter-{slot}"
        adapter.mkdir()
        config, weights, _ = engine.peft_files(slot)
        (adapter / "adapter_config.json").write_text(config)
        (adapter / "adapter_model.safetensors").write_bytes(weights)
        if model is None:
            model = PeftModel.from_pretrained(base, adapter, adapter_name="0", is_trainable=True)
        else:
            model.load_adapter(adapter, str(slot), is_trainable=True)
    assert model is not None
    return model.train()


def ways_of(engine: TrainEngine, peft: PeftModel, watch: Watch, device: str) -> dict[str, Way]:
    return {
        "fused": Ours(engine, watch, lambda data: [[part_of(i, [each]) for i, each in enumerate(data)]]),
        "solo": Ours(engine, watch, lambda data: [[part_of(i, [each])] for i, each in enumerate(data)]),
        "peft": Peft(peft, watch, device),
        "single": Ours(engine, watch, lambda data: [[part_of(0, data)]]),
    }
