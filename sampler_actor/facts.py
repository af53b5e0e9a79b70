"""What the sampler must know of the base model before any engine runs: read from its directory."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..bus.config import Config
from ..bus.errors import InvalidConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """path: its directory. context_tokens: of prompt and answer together.

    end_tokens: what the model itself ends an answer with; a Sample without stop_tokens stops there.
    """

    path: str
    vocab_size: int
    context_tokens: int
    end_tokens: tuple[int, ...]


def read_facts(config: Config) -> ModelFacts:
    """Read config.json and generation_config.json of the base model.

    Raises:
        InvalidConfig: no such directory, or files that are not a model's.
    """
    directory = Path(config.model.path or config.model.name)
    if not (directory / "config.json").is_file():
        raise InvalidConfig(f"{directory} holds no model: set model.path to a Hugging Face directory")
    model = _read(directory / "config.json")
    generation = _read(directory / "generation_config.json")
    vocab_size, positions = model.get("vocab_size"), model.get("max_position_embeddings")
    if not isinstance(vocab_size, int) or not isinstance(positions, int):
        raise InvalidConfig(f"{directory}/config.json lacks vocab_size or max_position_embeddings")
    ends = {*_ids(model.get("eos_token_id")), *_ids(generation.get("eos_token_id"))}
    return ModelFacts(
        path=str(directory),
        vocab_size=vocab_size,
        context_tokens=min(config.model.max_sequence_tokens, positions),
        end_tokens=tuple(sorted(ends)),
    )


def _read(file: Path) -> Mapping[str, object]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise InvalidConfig(f"{file} does not hold a JSON object")
    return content


def _ids(value: object) -> tuple[int, ...]:
    """eos_token_id is absent, a number, or a list of them."""
    values = value if isinstance(value, list) else [value]
    return tuple(v for v in values if isinstance(v, int))
