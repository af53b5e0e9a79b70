"""Trainers that serve schedules: each variant of settings, its state directory and the daemon's end."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from loractl.tests.trainer_actor.loop.harness import Office, Trainer, make_config, start, stop
from loractl.tests.trainer_actor.schedules.lives import MAX_RANK, MAX_TOKENS, VOCAB
from loractl.trainer_actor.costs import Costs
from loractl.trainer_actor.engine import TrainEngine
from transformers import Qwen3Config, Qwen3ForCausalLM

# Room for the largest state and little more, so that most of those who wait lie on disk.
TIGHT = "trainer.host_bytes={tight_bytes}"
_TIGHT_BYTES_PER_LAYER = 75_000
# A lease so short that those who left their window open hold up nobody for long.
LEASE = "trainer.window_lease_s=0.003"

VARIANTS: Mapping[str, Sequence[str]] = {
    "shared, fused": ("trainer.slots=3",),
    "shared, fused, few bytes": ("trainer.slots=2", TIGHT),
    "shared, fused, in pieces": ("trainer.slots=3", "trainer.pass_tokens=24", "trainer.sink_after_s=0.002"),
    "shared, fused, recomputed": ("trainer.slots=3", "trainer.recompute=true", TIGHT),
    "shared, unfused": ("trainer.slots=2", "trainer.fuse=false", TIGHT),
    "exclusive": ("trainer.slots=3", "trainer.window=exclusive", LEASE),
    "exclusive, few bytes": ("trainer.slots=2", "trainer.window=exclusive", LEASE, TIGHT),
    "exclusive, unfused": ("trainer.slots=2", "trainer.window=exclusive", "trainer.fuse=false", LEASE),
}
# What the numbers of an adapter alone may depend on: its own passes in pieces.
OWN_DOING = "trainer.pass_tokens"


def own_settings(variant: str) -> tuple[str, ...]:
    """Those settings of a variant that an adapter alone has as well."""
    return tuple(setting for setting in VARIANTS[variant] if setting.startswith(OWN_DOING))


class SteadyEngine(TrainEngine):
    """Does not measure what things cost here, which only decides the order of work: starts are frequent."""

    def measure(self) -> Costs:
        return Costs(pass_ms=2.0, token_ms=0.02, copy_bytes_per_ms=1e6)


def make_tiny_model(directory: Path, layers: int) -> Path:
    """A random Qwen3, hidden 16; weights drawn wide so that outputs depend on inputs."""
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=24,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    return directory


@dataclass(slots=True)
class Stage:
    """A trainer that serves, and can be restarted."""

    office: Office
    trainer: Trainer

    @classmethod
    def open(cls, model: Path, layers: int, settings: Sequence[str]) -> Self:
        # Short, because a socket's path may have about 100 bytes.
        directory = Path(tempfile.mkdtemp(prefix="lo"))
        limits = (f"model.max_sequence_tokens={MAX_TOKENS}", f"trainer.max_rank={MAX_RANK}")
        tight_bytes = _TIGHT_BYTES_PER_LAYER * layers
        given = [setting.format(tight_bytes=tight_bytes) for setting in (*limits, *settings)]
        office = Office(make_config(directory, model, *given))
        return cls(office, start(office, SteadyEngine)[0])

    def restart(self) -> None:
        """Stop the trainer, which answers all that waits, and start another on the same disk."""
        stop(self.office, self.trainer)
        self.trainer, _ = start(self.office, SteadyEngine)

    def close(self) -> None:
        stop(self.office, self.trainer)
        self.abandon()

    def abandon(self) -> None:
        """Leave a trainer that went wrong to itself."""
        self.office.close()
        shutil.rmtree(self.office.layout.root)
