"""Tiny random models of every family, engines on them, and batches: what the compute tests share."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loractl.bus.config import Config, ModelConfig, TrainerConfig
from loractl.bus.messages import LoraSpec
from loractl.trainer_actor.bank import PIECES, HostState
from loractl.trainer_actor.engine import TrainEngine
from loractl.trainer_actor.passes import AdamParams, PartResult, PassPart
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 320
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_COMMON)),
    "llama3": lambda: LlamaForCausalLM(LlamaConfig(**_COMMON, rope_parameters=_LLAMA3_ROPE)),
    "smollm2": lambda: LlamaForCausalLM(
        LlamaConfig(
            **{**_COMMON, "hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3},
            tie_word_embeddings=True,
        )
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_COMMON, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_COMMON, head_dim=16, tie_word_embeddings=True)),
    "qwen3-untied": lambda: Qwen3ForCausalLM(Qwen3Config(**_COMMON, head_dim=32)),
}
MODELS = {
    **FAMILIES,
    # A vocabulary that two ranks cannot share evenly.
    "odd": lambda: LlamaForCausalLM(LlamaConfig(**{**_COMMON, "vocab_size": VOCAB + 3})),
    "odd-tied": lambda: LlamaForCausalLM(
        LlamaConfig(**{**_COMMON, "vocab_size": VOCAB + 3}, tie_word_embeddings=True)
    ),
    # Large enough for threads to share its sums.
    "wide": lambda: LlamaForCausalLM(
        LlamaConfig(**{**_COMMON, "hidden_size": 256, "intermediate_size": 1024})
    ),
}


@dataclass
class Lab:
    """Builds each model and each engine once per session."""

    root: Path
    models: dict[str, PreTrainedModel] = field(default_factory=dict)
    engines: dict[str, TrainEngine] = field(default_factory=dict)

    def directory(self, family: str) -> Path:
        """The family's model as a Hugging Face directory."""
        path = self.root / family
        if not path.exists():
            torch.manual_seed(7)
            model = MODELS[family]().float().eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    # Norms near 1 and biases away from 0, so that a wrong or missing one shows.
                    parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.15)
            model.save_pretrained(path)
            self.models[family] = model
        return path

    def model(self, family: str) -> PreTrainedModel:
        self.directory(family)
        return self.models[family]

    def engine(self, family: str = "llama", **settings: Any) -> TrainEngine:
        """An engine with four slots, all free; settings go to the trainer's or the model's config."""
        key = json.dumps([family, settings])
        if key not in self.engines:
            model = {name: settings.pop(name) for name in ("dtype", "device") if name in settings}
            trainer = {"slots": 4, "max_rank": 16, "threads": 1, "logits_chunk": 16, **settings}
            path = str(self.directory(family))
            config = Config(
                model=ModelConfig(name="tiny", path=path, **model), trainer=TrainerConfig(**trainer)
            )
            self.engines[key] = TrainEngine.build(config)
        engine = self.engines[key]
        for slot in range(engine.slots):
            engine.bank.close(slot)
        return engine

    def peft(self, family: str, lora: LoraSpec) -> PeftModel:
        """The same adapter in Hugging Face PEFT, over a base model of its own."""
        base = type(self.model(family)).from_pretrained(self.directory(family), dtype=torch.float32)
        config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=sorted(modules_of(lora)))
        return get_peft_model(base, config).eval()


def modules_of(lora: LoraSpec) -> set[str]:
    """The linears that it adapts, as Hugging Face calls them."""
    attn = {"q_proj", "k_proj", "v_proj", "o_proj"} if lora.train_attn else set()
    mlp = {"gate_proj", "up_proj", "down_proj"} if lora.train_mlp else set()
    return attn | mlp | ({"lm_head"} if lora.train_unembed else set())


def spec(rank: int = 4, seed: int = 1, **changes: Any) -> LoraSpec:
    return LoraSpec(**{"rank": rank, "alpha": 3.0 * rank, "seed": seed, "train_unembed": True, **changes})


def batch(
    seed: int, lengths: Sequence[int], /, slot: int = 0, lora: LoraSpec | None = None, **changes: Any
) -> PassPart:
    """Random datums; about a third of the positions have weight 0."""
    draw = np.random.default_rng(seed)
    total = sum(lengths)
    policy = changes.get("loss", "cross_entropy") != "cross_entropy"

    def floats(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32) if policy else np.zeros(0, dtype=np.float32)

    fields = {
        "slot": slot,
        "lora": lora or spec(),
        "lengths": np.array(lengths, dtype=np.int64),
        "tokens": draw.integers(0, VOCAB, total),
        "targets": draw.integers(0, VOCAB, total),
        "weights": (draw.random(total) * (draw.random(total) > 0.3)).astype(np.float32),
        "old_logprobs": floats(-6 + draw.normal(0, 0.5, total)),
        "advantages": floats(draw.normal(0, 1, total)),
        "loss": "cross_entropy",
        "loss_config": {},
        "backward": True,
    }
    return PassPart(**{**fields, **changes})


def adam(**changes: float) -> AdamParams:
    values = {"learning_rate": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.0}
    return AdamParams(**{**values, "grad_clip_norm": 0.0, **changes})


def run(engine: TrainEngine, *parts: PassPart) -> list[PartResult]:
    """Every part checked and run in one call; all of them must succeed."""
    for part in parts:
        engine.check_part(part)
    outcomes = engine.forward_backward(parts)
    assert all(isinstance(outcome, PartResult) for outcome in outcomes), outcomes
    return outcomes


def begin(engine: TrainEngine, slot: int, lora: LoraSpec, *, trained: bool = True) -> None:
    """A fresh adapter; a trained one has random B as well, so that everything has a gradient."""
    engine.fresh(slot, lora)
    if trained:
        tensors, metadata = engine.checkpoint_tensors(state_in(engine, slot))
        draw = torch.Generator().manual_seed(lora.seed + 1000)
        for name, tensor in tensors.items():
            if "lora_B" in name:
                tensor.normal_(0, 0.05, generator=draw)
        engine.bank.copy_in(slot, engine.state_from_checkpoint(tensors, metadata, lora, with_optimizer=True))


def state_in(engine: TrainEngine, slot: int) -> HostState:
    """A copy of the slot's whole state in host memory."""
    row = engine.bank.row(slot)
    pieces = {name: None if (piece := row.piece(name)) is None else piece.cpu().clone() for name in PIECES}
    return HostState(lora=row.lora, step=row.step, tokens=row.tokens, **pieces)


def gradients(engine: TrainEngine, slot: int) -> dict[str, torch.Tensor]:
    """The slot's pending gradients by PEFT name."""
    tensors, _ = engine.checkpoint_tensors(state_in(engine, slot))
    return {
        name.removeprefix("gradients/"): each
        for name, each in tensors.items()
        if name.startswith("gradients/")
    }


def weights(engine: TrainEngine, slot: int) -> dict[str, torch.Tensor]:
    """The slot's main weights by PEFT name."""
    tensors, _ = engine.checkpoint_tensors(state_in(engine, slot))
    return {name.removeprefix("main/"): each for name, each in tensors.items() if name.startswith("main/")}
