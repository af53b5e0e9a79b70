"""The model of tests that start real trainers. Apart, because the rest of their tools imports the engine."""

from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

VOCAB = 128


def make_model(directory: Path, *, hidden: int = 32, intermediate: int = 64) -> Path:
    """A random Qwen3 of 2 layers; weights drawn wide so that outputs depend on inputs."""
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=intermediate,
        vocab_size=VOCAB,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    return directory
